"""The parts of the check, in the order in which they run."""

from collections.abc import Sequence
from dataclasses import dataclass

from ufork.errors import ConfigError

TOTAL_SECONDS = 470
"""Limit of all parts together on GPUs."""
CORES_PER_PART = 4
"""Cores for each of the parts that run at the same time: the layouts start up to three processes."""
CPU_TOTAL_SECONDS = 600
"""Limit of all parts together with `--cpu`, whose process may share two cores with others."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part; `run(report, cpu=...)` of the module of that name in `benchmarks.gpu_check.parts` is called."""

    name: str
    limit_seconds: float
    """Limit on GPUs."""
    needs_cuda: bool = False
    """Whether nothing of it can run on a CPU."""
    is_timed: bool = True
    """Whether it measures times, and therefore runs alone."""

    @property
    def module(self) -> str:
        """Name to import."""
        return f"benchmarks.gpu_check.parts.{self.name}"

    def limit(self, *, cpu: bool) -> float:
        """Returns the limit in seconds; with `cpu` one that a busy machine keeps."""
        return 120.0 if cpu else self.limit_seconds


PARTS = (
    Part(name="environment", limit_seconds=100),
    Part(name="layouts", limit_seconds=150, is_timed=False),
    Part(name="training", limit_seconds=110, is_timed=False),
    Part(name="resuming", limit_seconds=90, is_timed=False),
    Part(name="device_tests", limit_seconds=150, is_timed=False, needs_cuda=True),
    Part(name="released_size", limit_seconds=120),
    Part(name="depth_attention", limit_seconds=60),
    Part(name="packed_attention", limit_seconds=40),
    Part(name="layers", limit_seconds=75),
    Part(name="drawing", limit_seconds=90),
    Part(name="checkpoint_stall", limit_seconds=75),
    Part(name="qwen2_comparison", limit_seconds=110),
    Part(name="streams", limit_seconds=25, needs_cuda=True),
)
"""Limits add up to more than TOTAL_SECONDS: not every part needs all of its own."""


def choose_parts(names: str | None) -> Sequence[Part]:
    """Returns the parts that `names` lists, separated by commas, in the order of PARTS; all of them for None.

    Raises:
        ConfigError: a name is unknown.
    """
    if names is None:
        return PARTS
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    known = [part.name for part in PARTS]
    if unknown := sorted(wanted - set(known)):
        raise ConfigError(f"--parts: {', '.join(unknown)}: unknown; expected some of {', '.join(known)}")
    if not wanted:
        raise ConfigError(f"--parts: names no part; expected some of {', '.join(known)}")
    return [part for part in PARTS if part.name in wanted]
