"""Writes a folder of ufork's weights from a plan, one tensor at a time.

plan by the names of ufork's parameters, sizes, text tokenizer -> model.safetensors, config.json, text/
"""

from dataclasses import dataclass
from pathlib import Path

from ufork.convert.planned_file import Plan, write_planned
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import TokenizerError
from ufork.files import make_folder, write_whole
from ufork.infer.model import TEXT_FOLDER
from ufork.model.weights import CONFIG_NAME, WEIGHTS_NAME, WeightsConfig, parameter_shapes


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion has written."""

    config: WeightsConfig
    num_parameters: int
    """Of the model, without an image tokenizer."""
    num_bytes: int
    """Of all weights."""


def require_embedded(tokenizer: TextTokenizer, vocab_size: int, *, origin: Path, remedy: str) -> None:
    """Checks that a model with `vocab_size` rows of embeddings has one for every token.

    Raises:
        TokenizerError: the tokenizer in `origin` has more tokens; ends with `remedy`.
    """
    if tokenizer.size > vocab_size:
        raise TokenizerError(
            f"{origin}: the tokenizer has {tokenizer.size} tokens with those that ufork adds, and the model embeds"
            f" {vocab_size}; {remedy}"
        )


def write_weights_folder(folder: Path, plan: Plan, config: WeightsConfig, tokenizer: TextTokenizer | None) -> Converted:
    """Writes weights that `load_weights` reads, and the text tokenizer if there is one.

    Raises:
        NonFiniteError: a weight is NaN or infinite.
        StorageError: the folder cannot be written.
    """
    assert {name: tensor.size.shape for name, tensor in plan.items()} == parameter_shapes(config)
    make_folder(folder)
    if tokenizer is not None:
        tokenizer.save(folder / TEXT_FOLDER)
    num_bytes = write_planned(folder / WEIGHTS_NAME, plan)
    write_whole(folder / CONFIG_NAME, config.model_dump_json(indent=1), durable=True)
    num_parameters = sum(tensor.size.num_values for tensor in plan.values())
    return Converted(config=config, num_parameters=num_parameters, num_bytes=num_bytes)
