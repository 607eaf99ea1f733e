"""What the probes of a trial measured, layer by layer.

TrialResult.probes -> alignment of image and text features at the end of training
                   -> conflict of the tasks' gradients in the shared layers, mean of all measurements
"""

from statistics import mean

from ufork.analysis.ablation.trial_result import TrialResult
from ufork.vocabulary import Task

ALIGNMENT, CONFLICT = "alignment", "gradient_conflict"
"""Names of the probes (`ufork/train/probes`)."""
MUTUAL_NEIGHBOURS, CKA = "mutual_neighbours", "cka"
"""Measures of alignment (docs/alignment.md)."""


def alignment_curve(result: TrialResult, measure: str, task: Task, *, of_permuted: bool = False) -> list[float]:
    """Returns the last measurement of each layer's image features against its text features.

    Args:
        result: trial whose alignment was measured; the curve is empty if it was not.
        measure: MUTUAL_NEIGHBOURS or CKA.
        task: path whose layers are compared, 0 being the input of the first.
        of_permuted: takes the mean score of permuted pairs.
    """
    name = f"{measure}_of_permuted" if of_permuted else measure
    return [values[-1] for values in _by_layer(result, ALIGNMENT, f"{name}/{task}/layers.")]


def conflict_curve(result: TrialResult) -> list[float]:
    """Returns the cosine of the two tasks' gradients in each shared layer, from the first; empty if not measured."""
    return [mean(values) for values in _by_layer(result, CONFLICT, "cosine/layers.")]


def _by_layer(result: TrialResult, probe: str, prefix: str) -> list[list[float]]:
    """Returns the measurements of the figures `prefix`0, `prefix`1, ..., one list per layer."""
    measurements = result.probes.get(probe, [])
    endings = {name.removeprefix(prefix) for each in measurements for name in each if name.startswith(prefix)}
    names = [f"{prefix}{number}" for number in sorted(int(ending) for ending in endings if ending.isdigit())]
    return [[each[name] for each in measurements if name in each] for name in names]
