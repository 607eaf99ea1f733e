"""What ufork computes with body and heads partitioned over tensor-parallel processes.

converted checkpoint, golden inputs -> each rank's values and gradients -> joined along what was partitioned
"""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.parity.batches import GRADIENTS, joined_gradients, mixed_gradients
from benchmarks.parity.values import Values, mixed_rows, model_values
from pipelines.launch.local_ranks import start_local_ranks
from pipelines.launch.ranks import process_context
from ufork.infer.model import VISION_FOLDER
from ufork.infer.padded_rows import load_plain
from ufork.parallel.config import LayoutConfig
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.vision.codec import ImageCodec
from ufork.vocabulary import Task

TIMEOUT_SECONDS = 120.0
VOCABULARY_DIM = -1
"""Dimension of logits that ranks partition."""


def partitioned_values(folder: Path, golden: Values, *, tp: int) -> Values:
    """Returns the values of the converted model in `folder`, partitioned over `tp` processes."""
    context = process_context(("ufork.parallel.engine.tensor_parallel",))
    results = start_local_ranks(_rank_values, tp, folder, golden, context=context, timeout_seconds=TIMEOUT_SECONDS)
    values, gradients, partition_dims = results[0]
    for name in values:
        if "logits" in name:
            values[name] = torch.cat([of_rank[name] for of_rank, _, _ in results], VOCABULARY_DIM)
    for name, dim in partition_dims.items():
        gradients[name] = torch.cat([of_rank[name] for _, of_rank, _ in results], dim)
    return {**values, GRADIENTS: joined_gradients(gradients, load_plain(folder).config)}


def _rank_values(
    rank_env: RankEnvironment, folder: Path, golden: Values
) -> tuple[Values, dict[str, Tensor], dict[str, int]]:
    """Returns this rank's values, gradients of the mixed batch, and the dimensions of those that are partitioned."""
    from ufork.parallel.engine.tensor_parallel import apply_tensor_parallel

    torch.set_num_threads(1)
    layout = LayoutConfig(colocated_tp=rank_env.world_size)
    with join_world(rank_env, layout, timeout_seconds=TIMEOUT_SECONDS) as world:
        model, codec = load_plain(folder), ImageCodec.load(folder / VISION_FOLDER)
        partition_dims = apply_tensor_parallel(model, world.tp_group)
        with torch.no_grad():
            values = model_values(model, codec, golden)
        gradients = mixed_gradients(model, {task: mixed_rows(codec, golden, task) for task in Task})
        return values, gradients, partition_dims
