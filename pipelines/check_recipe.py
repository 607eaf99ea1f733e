"""Refuses a recipe that cannot train on a number of ranks, before any rank is started: pure, importable without torch.

recipe, number of ranks -> check_phase of every phase -> nothing, or a ConfigError that names phase, key and remedy
"""

from pathlib import Path

from pipelines.recipe import Recipe
from ufork.errors import ConfigError
from ufork.model.config import Dimensions
from ufork.train.check_phase import check_phase
from ufork.vision.config import TokenizerConfig

QWEN_VOCABULARY = 151_680
"""`TextTokenizer.padded_size` of Qwen2.5's tokenizer, assumed for every tokenizer folder until it has been read."""


def check_recipe(recipe: Recipe, num_ranks: int, dimensions: Dimensions | None = None) -> None:
    """Checks every phase of `recipe` on `num_ranks` ranks.

    Args:
        recipe: the recipe.
        num_ranks: ranks of the job.
        dimensions: sizes of the run's tokenizers; those that the recipe asks for by default.

    Raises:
        ConfigError: there is no phase, or one cannot train; the message names the first.
    """
    if not recipe.phases:
        raise ConfigError("phases: the recipe has none, so there is nothing to train; name at least one")
    sizes = dimensions or nominal_dimensions(recipe)
    for name, phase in recipe.phases.items():
        try:
            check_phase(phase.train, phase.data, recipe.layout, recipe.model, sizes, num_ranks=num_ranks)
        except ConfigError as error:
            raise ConfigError(f"phase {name} on {num_ranks} ranks: {error}") from None


def nominal_dimensions(recipe: Recipe) -> Dimensions:
    """Returns the sizes that the recipe's tokenizers will have; of a text tokenizer's folder, nothing is read.

    Raises:
        TokenizerError: as `nominal_image_tokenizer`.
    """
    vision = nominal_image_tokenizer(recipe)
    return Dimensions(
        vocab_size=QWEN_VOCABULARY if recipe.text.folder else recipe.text.padded_vocab_size,
        codebook_size=vision.codebook_size,
        code_width=vision.code_width,
        codes_per_position=vision.codes_per_position,
    )


def nominal_image_tokenizer(recipe: Recipe) -> TokenizerConfig:
    """Returns the sizes of the image tokenizer in `vision.folder`; where there is none, those that the recipe asks for.

    Raises:
        TokenizerError: the folder exists and holds no image tokenizer.
    """
    if recipe.vision.folder is None or not Path(recipe.vision.folder).exists():
        return recipe.vision
    from ufork.vision.codec import read_config

    return read_config(Path(recipe.vision.folder))
