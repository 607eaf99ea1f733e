"""Rates of a machine, from which plans are made. Importable without torch."""

from pathlib import Path

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from ufork.config import Config
from ufork.errors import ConfigError


class MachineProfile(Config):
    """Rates of one device and of the links between devices."""

    name: str
    gflops: PositiveFloat
    """Peak rate of matrix products in the training precision, in 1e9 operations per second."""
    efficiency: float = Field(gt=0, le=1)
    """Share of the peak that a training step reaches, including everything between products."""
    memory_gb: PositiveFloat
    """Memory of one device."""
    memory_gb_per_s: PositiveFloat
    """Memory bandwidth of a device, which bounds the optimizer's update."""
    devices_per_node: PositiveInt
    node_gb_per_s: PositiveFloat
    """Bandwidth between two devices of a node, in one direction."""
    network_gb_per_s: PositiveFloat
    """Bandwidth between two nodes, for each device."""
    latency_us: NonNegativeFloat = 10.0
    """Latency of one transfer."""
    collective_gb_per_s: PositiveFloat | None = None
    """Bus bandwidth of sums and gathers as nccl-tests defines it (default: that of the slowest link they cross)."""
    collective_latency_us: NonNegativeFloat = 20.0
    """Latency of one sum or gather."""
    hides_gathers: bool = True
    """Whether ZeRO's gathers overlap with computation, as on a GPU; on a CPU they take its cores, and add to a pass."""

    @property
    def flops_per_s(self) -> float:
        """Operations per second that a training step reaches."""
        return self.gflops * 1e9 * self.efficiency


PROFILES = {
    # Datasheets: dense bf16, HBM, NVLink in one direction, one 400 or 200 Gb/s adapter per device. The efficiencies are
    # what established trainers report for models of this size (torchtitan's and MegatronLM's tables: 0.35 to 0.5).
    "h100": MachineProfile(
        name="h100",
        gflops=989_000,
        efficiency=0.4,
        memory_gb=80,
        memory_gb_per_s=3350,
        devices_per_node=8,
        node_gb_per_s=450,
        network_gb_per_s=50,
    ),
    "a100": MachineProfile(
        name="a100",
        gflops=312_000,
        efficiency=0.45,
        memory_gb=80,
        memory_gb_per_s=2039,
        devices_per_node=8,
        node_gb_per_s=300,
        network_gb_per_s=25,
    ),
}


def profile_of(name: str) -> MachineProfile:
    """Returns a known profile by name, or reads the YAML file of a measured one.

    Raises:
        ConfigError: `name` is neither.
    """
    if name in PROFILES:
        return PROFILES[name]
    path = Path(name)
    if not path.is_file():
        raise ConfigError(
            f"--gpu {name}: unknown; expected one of {', '.join(PROFILES)}, or the file of `ufork plan --measure`"
        )
    return MachineProfile.from_yaml(path)
