"""What a machine can do: the figures that a plan is made from. Free of torch."""

from pathlib import Path

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from ufork.config import Config
from ufork.errors import ConfigError


class MachineProfile(Config):
    """Rates of one device and of the ways between devices."""

    name: str
    gflops: PositiveFloat
    """Peak of matrix products in the precision that is trained in, 1e9 operations per second."""
    efficiency: float = Field(gt=0, le=1)
    """Share of it that a training step's products reach, everything between them included."""
    memory_gb: PositiveFloat
    """Of one device."""
    memory_gb_per_s: PositiveFloat
    """At which a device reads and writes its memory: what an optimizer step takes."""
    devices_per_node: PositiveInt
    node_gb_per_s: PositiveFloat
    """Between two devices of a node, in one direction."""
    network_gb_per_s: PositiveFloat
    """Between two nodes, for each device."""
    latency_us: NonNegativeFloat = 10.0
    """Of one transfer."""
    collective_gb_per_s: PositiveFloat | None = None
    """Bus bandwidth of sums and gathers, as nccl-tests has it; of the slowest link that they cross unless given."""
    collective_latency_us: NonNegativeFloat = 20.0
    """Of one sum or gather."""
    hides_gathers: bool = True
    """ZeRO's gathers run beside a pass, as on a GPU; on a CPU they take its core, and their seconds add up."""

    @property
    def flops_per_s(self) -> float:
        """What a training step reaches."""
        return self.gflops * 1e9 * self.efficiency


PROFILES = {
    # Datasheets: dense bf16, HBM, NVLink in one direction, one 400 or 200 Gb/s adapter per device. The efficiencies are
    # what well-kept trainers report for models of this size (torchtitan's and MegatronLM's tables: 0.35 to 0.5).
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
    """A known profile by its name, or the YAML file of one that was measured.

    Raises:
        ConfigError: neither.
    """
    if name in PROFILES:
        return PROFILES[name]
    path = Path(name)
    if not path.is_file():
        raise ConfigError(
            f"--gpu {name}: known are {', '.join(PROFILES)}, or the file that `ufork plan --measure` wrote"
        )
    return MachineProfile.from_yaml(path)
