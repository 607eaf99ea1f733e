"""The parameters in a checkpoint's files, compared with the model that `state.json` records.

state.json -> WeightsConfig; its model on the meta device -> names and shapes -> StateFiles that fit them
"""

from pathlib import Path

from ufork.checkpoint.state import FIXED_DIMENSIONS, FIXED_MODEL, CheckpointState
from ufork.errors import CheckpointError, ConfigError
from ufork.model.unifork import TIED_HEAD, TOKEN_EMBEDDING
from ufork.model.weights import MODEL_PREFIX, WeightsConfig, parameter_shapes
from ufork.parallel.engine.state_files import StateFiles


def recorded_model(path: Path, state: CheckpointState) -> WeightsConfig:
    """Returns the sizes of the model that the checkpoint at `path` is of.

    Raises:
        CheckpointError: `state` does not record them.
    """
    fixed = state.run_metadata.fixed
    sizes = {"model": fixed.get(FIXED_MODEL), "dimensions": fixed.get(FIXED_DIMENSIONS)}
    try:
        return WeightsConfig.from_mapping(sizes, origin=str(path))
    except ConfigError as error:
        raise CheckpointError(f"{error}\nthe checkpoint is damaged, or was written by another version") from None


def open_parameters(path: Path, state: CheckpointState) -> StateFiles:
    """Opens the files of the checkpoint at `path`.

    Raises:
        CheckpointError: a file is damaged, or a parameter in it has another shape than the model's.
    """
    shapes = parameter_shapes(recorded_model(path, state))
    shapes[TIED_HEAD] = shapes[TOKEN_EMBEDDING]  # of a layout in which they are on different ranks
    files = StateFiles(path, state.files)
    for name, shape in files.shapes().items():
        expected = shapes.get(name.removeprefix(MODEL_PREFIX))
        if expected not in (shape, None):
            raise CheckpointError(f"{path}: {name} has shape {list(shape)}, the recorded model's has {list(expected)}")
    return files
