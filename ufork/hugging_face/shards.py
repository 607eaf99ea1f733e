"""Weights as transformers stores them: one safetensors file, or several of at most 5 GB with an index.

plan of tensors -> groups -> model.safetensors, or model-00001-of-00002.safetensors ... and the index
"""

import json
from pathlib import Path

from ufork.convert.planned_file import Plan, write_planned
from ufork.convert.tensor_folder import INDEX_NAME
from ufork.files import write_whole

MAX_SHARD_BYTES = 5 * 10**9
"""Largest file; a tensor that is larger has a file of its own."""


def write_shards(folder: Path, plan: Plan, *, max_bytes: int = MAX_SHARD_BYTES) -> None:
    """Writes the tensors of `plan`, in its order, one at a time.

    Raises:
        NonFiniteError: a tensor holds NaN or infinity.
        StorageError: a file cannot be written.
        UforkError: as the functions of `plan` do.
    """
    groups = _groups(plan, max_bytes)
    if len(groups) == 1:
        write_planned(folder / "model.safetensors", plan)
        return
    files: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        write_planned(folder / file, {name: plan[name] for name in names})
        files |= dict.fromkeys(names, file)
    total_size = sum(tensor.size.num_bytes for tensor in plan.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": files}
    write_whole(folder / INDEX_NAME, json.dumps(index, indent=2) + "\n")


def _groups(plan: Plan, max_bytes: int) -> list[list[str]]:
    """Returns the names of the tensors of each file."""
    groups: list[list[str]] = [[]]
    num_bytes = 0
    for name, tensor in plan.items():
        if groups[-1] and num_bytes + tensor.size.num_bytes > max_bytes:
            groups.append([])
            num_bytes = 0
        groups[-1].append(name)
        num_bytes += tensor.size.num_bytes
    return groups
