"""Rates of a machine, from which plans are made. Importable without torch."""

from pathlib import Path

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from ufork.config import Config
from ufork.errors import ConfigError


class KernelRates(Config):
    """Rates of a GPU's kernels that are not matrix products."""

    attention_gflops: PositiveFloat | None = None
    """Rate of the attention kernels, forward and backward, in 1e9 operations per second (default: as products)."""
    memory_efficiency: float = Field(gt=0, le=1)
    """Share of `memory_gb_per_s` that element-wise kernels reach."""
    launch_us: NonNegativeFloat
    """Time in which the host starts one operation, with Python's and autograd's share: the least that it takes."""


class MachineProfile(Config):
    """Rates of one device and of the links between devices."""

    name: str
    gflops: PositiveFloat
    """Peak rate of matrix products in the training precision, in 1e9 operations per second; bf16 where there is an
    `fp32_gflops`."""
    fp32_gflops: PositiveFloat | None = None
    """The same in fp32, if that differs."""
    native_bf16: bool = True
    """Whether the device computes bf16 natively (a GPU of compute capability 8.0 or newer)."""
    efficiency: float = Field(gt=0, le=1)
    """Share of the peak that matrix products reach; without `kernels`, that a whole training step reaches."""
    kernels: KernelRates | None = None
    """Rates of the other kernels of a GPU; without them, `efficiency` includes everything between products."""
    memory_gb: PositiveFloat
    """Memory of one device."""
    memory_gb_per_s: PositiveFloat
    """Memory bandwidth of a device, which bounds element-wise kernels and the optimizer's update."""
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
    """Whether ZeRO's gathers overlap with computation, as on a GPU once each task's order of gathers is recorded; on a
    CPU they take its cores, and add to a pass."""

    def peak_gflops(self, precision: str) -> float:
        """Peak rate of matrix products in `precision`, in 1e9 operations per second."""
        return self.fp32_gflops if precision == "fp32" and self.fp32_gflops else self.gflops

    def flops_per_s(self, precision: str) -> float:
        """Operations per second of matrix products in a training step."""
        return self.peak_gflops(precision) * 1e9 * self.efficiency

    @property
    def element_bytes_per_s(self) -> float:
        """Bytes per second that element-wise kernels move."""
        return self.memory_gb_per_s * 1e9 * (self.kernels.memory_efficiency if self.kernels else 1)


# Datasheets of the SXM cards (nvidia.com/en-us/data-center/h100, h200, a100, v100, tesla-t4): dense bf16, fp32 without
# tensor cores (torch's default), memory, NVLink in one direction; one 400 or 200 Gb/s adapter per device. The largest
# products that others measured are 792 TFLOP/s on an H100 and 268 on an A100 (github.com/mag-/gpu_benchmark): 0.80 and
# 0.86 of the datasheet. The model's products have 896 inputs, too few to reach that: 0.6 and 0.7 are assumed. Attention
# is FlashAttention-2's at 64 features a head and about a thousand tokens a segment (figures of arXiv 2307.08691).
# `ufork plan --measure` replaces all of these.
_H100 = MachineProfile(
    name="h100",
    gflops=989_000,
    fp32_gflops=67_000,
    efficiency=0.6,
    kernels=KernelRates(attention_gflops=150_000, memory_efficiency=0.85, launch_us=6),
    memory_gb=80,
    memory_gb_per_s=3350,
    devices_per_node=8,
    node_gb_per_s=450,
    network_gb_per_s=50,
)
_A100 = MachineProfile(
    name="a100",
    gflops=312_000,
    fp32_gflops=19_500,
    efficiency=0.7,
    kernels=KernelRates(attention_gflops=90_000, memory_efficiency=0.85, launch_us=6),
    memory_gb=80,
    memory_gb_per_s=2039,
    devices_per_node=8,
    node_gb_per_s=300,
    network_gb_per_s=25,
)
PROFILES = {
    "h100": _H100,
    "h200": _H100.model_copy(update={"name": "h200", "memory_gb": 141, "memory_gb_per_s": 4800}),
    "a100": _A100,
    "v100": _A100.model_copy(
        update={
            "name": "v100",
            "gflops": 15_700,
            "fp32_gflops": 15_700,
            "native_bf16": False,
            "kernels": KernelRates(memory_efficiency=0.85, launch_us=6),
            "memory_gb": 32,
            "memory_gb_per_s": 900,
            "node_gb_per_s": 150,
            "network_gb_per_s": 12.5,
        }
    ),
    "t4": _A100.model_copy(
        update={
            "name": "t4",
            "gflops": 8_100,
            "fp32_gflops": 8_100,
            "native_bf16": False,
            "kernels": KernelRates(memory_efficiency=0.8, launch_us=6),
            "memory_gb": 16,
            "memory_gb_per_s": 320,
            "node_gb_per_s": 12,
            "network_gb_per_s": 6,
            "devices_per_node": 4,
        }
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
