"""Compares the tensors of a file with those that a model needs, and names the differences in groups.

    sizes found, shapes expected -> nothing, or a CheckpointError: missing, unexpected, mis-shaped, mistyped, and why

Names that differ in numbers only are one group: `model.layers.*.mlp.up_proj.weight (24 tensors)`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from ufork.convert.tensor_folder import TensorSize
from ufork.errors import CheckpointError
from ufork.tensor_file import WEIGHT_TYPES

MOST_GROUPS = 12
"""Groups that a message names of each kind."""
Shape = tuple[int, ...]


def require_match(
    found: Mapping[str, TensorSize],
    expected: Mapping[str, Shape],
    *,
    origin: str,
    model: str,
    unused: Iterable[str] = (),
    reasons: Mapping[str, str] | None = None,
) -> None:
    """Checks that `found` has the tensors that are `expected`, and no others.

    Args:
        found: sizes of the tensors in a file.
        expected: shapes of the tensors that are needed.
        origin: the file or folder, for the message.
        model: what needs the tensors, for the message.
        unused: patterns of names that may be there and are not read.
        reasons: why a tensor may differ, by a pattern of its name. A pattern is a regular expression of a whole name.

    Raises:
        CheckpointError: some are missing, unexpected, of another shape, or no floating-point numbers.
    """
    missing = [name for name in expected if name not in found]
    surplus = [name for name in found if name not in expected and not any(re.fullmatch(p, name) for p in unused)]
    shapes = {name: (found[name].shape, shape) for name, shape in expected.items() if name in found}
    misshaped = [f"{name}: {list(a)}, expected {list(b)}" for name, (a, b) in shapes.items() if a != b]
    mistyped = [
        f"{name}: {str(found[name].dtype).removeprefix('torch.')}"
        for name in expected
        if name in found and found[name].dtype not in WEIGHT_TYPES.values()
    ]
    kinds = {
        "missing": _groups(missing, reasons or {}, "the model needs it; is the download complete?"),
        "unexpected": _groups(surplus, reasons or {}, "the model has no such tensor"),
        "mis-shaped": _groups(misshaped, reasons or {}, "the sizes in config.json are others"),
        "mistyped": _groups(mistyped, reasons or {}, "weights are bfloat16, float16, float32 or float64; save them so"),
    }
    if lines := [f"  {kind}: {line}" for kind, groups in kinds.items() for line in groups]:
        count = len(missing) + len(surplus) + len(misshaped) + len(mistyped)
        raise CheckpointError("\n".join((f"{origin}: {count} tensor(s) are not those of {model}", *lines)))


def _groups(names: list[str], reasons: Mapping[str, str], usual_reason: str) -> list[str]:
    """Returns a line per group of names; a name may be followed by a colon and what is wrong with it."""
    groups = Counter((_without_numbers(name), _reason_of(name, reasons, usual_reason)) for name in names)
    lines = [f"{group}{f' ({n} tensors)' if n > 1 else ''}: {reason}" for (group, reason), n in groups.items()]
    omitted = len(lines) - MOST_GROUPS
    return lines[:MOST_GROUPS] + ([f"and {omitted} more groups"] if omitted > 0 else [])


def _without_numbers(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _reason_of(name: str, reasons: Mapping[str, str], usual: str) -> str:
    name = name.partition(":")[0]
    return next((reason for pattern, reason in reasons.items() if re.fullmatch(pattern, name)), usual)
