"""Exporting whole weights from a checkpoint, to draw and answer with or to start another run from.

shards of all ranks, by name -> whole tensors; what the phase froze -> from the weights that it began with
"""

from pathlib import Path

from torch import Tensor

from ufork.checkpoint.parameters import open_parameters, recorded_model
from ufork.checkpoint.state import FIXED_INITIAL_WEIGHTS, CheckpointState, record_of, verify
from ufork.config import read_mapping
from ufork.errors import CheckpointError
from ufork.model.weights import MODEL_PREFIX, WEIGHTS_NAME, WeightsConfig, load_weights, parameter_shapes
from ufork.parallel.engine.state_files import WEIGHT
from ufork.run_folder import RunFolder


def checkpoint_weights(path: Path, run: RunFolder) -> tuple[dict[str, Tensor], WeightsConfig]:
    """Reads every parameter of the model by its name, in fp32, and the model's sizes.

    Args:
        path: folder of the checkpoint.
        run: run that holds the checkpoint; what the phase froze is looked up in the weights of its other phases.

    Raises:
        CheckpointError: the checkpoint is damaged, or the weights that its phase began with are gone.
    """
    state = verify(path, deep=True)
    config = recorded_model(path, state)
    names = list(parameter_shapes(config))
    with open_parameters(path, state) as files:
        trained = {name: files.whole(WEIGHT, MODEL_PREFIX + name) for name in names}
    weights = {name: tensor for name, tensor in trained.items() if tensor is not None}
    if len(weights) < len(names):
        frozen = load_weights(_initial_weights(path, run, state))[0]
        weights = {name: weights.get(name, frozen[name]) for name in names}
    return weights, config


def _initial_weights(path: Path, run: RunFolder, state: CheckpointState) -> Path:
    """The weights in the run whose checksum the checkpoint records as those that its phase began with."""
    wanted = state.run_metadata.fixed.get(FIXED_INITIAL_WEIGHTS)
    for folder in (*(phase.weights for phase in run.phases()), *_start_of(run)):
        weights = folder / WEIGHTS_NAME
        if wanted and weights.is_file() and record_of(weights).checksum == wanted:
            return weights.parent
    raise CheckpointError(
        f"{path}: its phase trained only part of the model, and the weights that it began with are neither in"
        f" {run.path}/phases/*/weights nor in the run's model.start; give a checkpoint inside its run's folder"
    )


def _start_of(run: RunFolder) -> list[Path]:
    """Returns the folder of weights that the run's first phase started from, if there is one."""
    model = read_mapping(run.config).get("model") if run.config.exists() else None
    start = model.get("start") if isinstance(model, dict) else None
    return [Path(start)] if isinstance(start, str) else []
