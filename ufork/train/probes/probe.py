"""What a probe is: a measurement with whole weights, on the leader, every so many steps.

    train loop -> whole weights -> Probe.measure -> telemetry: RUN/phases/NAME/probes/PROBE.jsonl, wandb

A probe sees a copy of the weights, so training goes on as it would without.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ufork.train.initial_model import Weights

ShowAlive = Callable[[], None]
"""Sign of life to the ranks that wait; to call at short intervals."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A measurement during training; the same on all ranks with work, and made on the leader while the others wait."""

    name: str
    """Name of its file and of its key in `train`, such as `gradient_conflict`."""
    every_steps: int
    """Steps between two measurements, above 0."""
    measure: Callable[[Weights, ShowAlive], Mapping[str, float]]
    """(whole weights, fp32, on the CPU; sign of life) -> figures by name."""
