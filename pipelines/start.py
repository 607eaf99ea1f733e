"""What a run starts from instead of random weights: the folder `model.start`.

model and tokenizers of the run, folder -> nothing, or an error that names each key at fault

The folder is one that `ufork convert` wrote, or the weights of another run's phase.
"""

from pathlib import Path
from typing import Any

from ufork.config import Config
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import CheckpointError, ConfigError, TokenizerError
from ufork.infer.model import TEXT_FOLDER
from ufork.model.config import Dimensions, ModelConfig
from ufork.model.weights import WeightsConfig, read_weights_config

FREE_VALUES = {"model.initializer_range", "model.rq_head.dropout"}
"""Values that do not change what weights compute; a run may choose them."""


def start_config(start: Path) -> WeightsConfig:
    """Returns the sizes of the model whose weights are in `start`.

    Raises:
        CheckpointError: the folder is missing or damaged.
    """
    try:
        return read_weights_config(start)
    except CheckpointError as error:
        raise CheckpointError(f"model.start: {error}") from None


def check_start(model: ModelConfig, start: Path, dimensions: Dimensions) -> None:
    """Checks that the weights in `start` are those of the recipe's model.

    Args:
        model: sizes of the recipe's model.
        start: folder of weights.
        dimensions: sizes that follow from the run's tokenizers.

    Raises:
        CheckpointError: the folder is missing or damaged.
        ConfigError: a value of the model, or a size of the image tokenizer, is another one.
    """
    found = start_config(start)
    ours = {**_values(model, "model."), **_values(dimensions, "vision.")}
    others = {**_values(found.model, "model."), **_values(found.dimensions, "vision.")}
    faults = [
        f"  {key}: {ours[key]} in the recipe, {others[key]} in the start"
        for key in ours.keys() - FREE_VALUES - {"vision.vocab_size"}
        if ours[key] != others[key]
    ]
    if faults:
        message = f"model.start={start}: {len(faults)} value(s) are not those of the start; repeat them in the recipe"
        raise ConfigError("\n".join((message, *sorted(faults))))


def check_start_tokenizer(start: Path, tokenizer: TextTokenizer) -> None:
    """Checks that the weights in `start` were made for the run's text tokenizer.

    Raises:
        TokenizerError: the folder's tokenizer is missing, damaged or another one.
    """
    if not tokenizer.equals(TextTokenizer.load(start / TEXT_FOLDER)):
        raise TokenizerError(
            f"text.folder: the run's text tokenizer is not that of model.start={start}, whose embedding is for others'"
            f" tokens; set text.folder={start / TEXT_FOLDER}, and run `ufork tokenizer text` again"
        )


def _values(config: Config, prefix: str) -> dict[str, Any]:
    """Returns all values of a config by their dotted keys, those that are not stored, too."""
    values: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        values |= _values(value, f"{prefix}{name}.") if isinstance(value, Config) else {prefix + name: value}
    return values
