"""A checkpoint's weights by themselves: whole, for drawing, answering, or another run to begin with.

shards of all ranks, by name -> whole tensors; what the stage froze -> from the weights it began with
"""

from pathlib import Path

import torch
from torch import Tensor

from ufork.checkpoint.folder import FIXED_MODEL, FIXED_SIZES, FIXED_START, CheckpointState, record_of, verify
from ufork.errors import CheckpointError
from ufork.model.unifork import UniFork
from ufork.model.weights import MODEL_PREFIX, WEIGHTS_NAME, WeightsConfig, load_weights
from ufork.parallel.engine.state_files import WEIGHT, StateFiles


def checkpoint_weights(path: Path) -> tuple[dict[str, Tensor], WeightsConfig]:
    """Every parameter of the model by its name, fp32, and the sizes.

    Args:
        path: of a checkpoint in a run's folder; what its stage froze is looked for in the run's other stages.

    Raises:
        CheckpointError: it is damaged, or the weights that its stage began with are gone.
    """
    state = verify(path, deep=True)
    config = WeightsConfig(model=state.fixed[FIXED_MODEL], dimensions=state.fixed[FIXED_SIZES])
    with torch.device("meta"):
        names = [name for name, _ in UniFork(config.model, config.dimensions).named_parameters()]
    with StateFiles(path) as files:
        trained = {name: files.whole(WEIGHT, MODEL_PREFIX + name) for name in names}
    weights = {name: tensor for name, tensor in trained.items() if tensor is not None}
    if len(weights) < len(names):
        frozen = load_weights(_began_with(path, state))[0]
        weights = {name: weights.get(name, frozen[name]) for name in names}
    return weights, config


def _began_with(path: Path, state: CheckpointState) -> Path:
    """The folder of weights, in the same run, with the checksum that the checkpoint tells."""
    stages, wanted = path.resolve().parents[2], state.fixed[FIXED_START]
    for weights in sorted(stages.glob(f"*/weights/{WEIGHTS_NAME}")):
        if wanted and record_of(weights).checksum == wanted:
            return weights.parent
    raise CheckpointError(
        f"{path}: its stage trained a part of the model, and the weights that it began with are not in"
        f" {stages}/*/weights; give a checkpoint within its run's folder, of a stage after the first"
    )
