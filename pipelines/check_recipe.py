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
        CheckpointError: `model.start` holds damaged weights.
        ConfigError: there is no phase, or one cannot train; the message names the first. Or `model.start` holds the
            weights of another model.
    """
    if not recipe.phases:
        raise ConfigError("phases: the recipe has none, so there is nothing to train; name at least one")
    sizes = dimensions or nominal_dimensions(recipe)
    if start := existing_start(recipe):
        from pipelines.start import check_start

        check_start(recipe.model.sizes, start, sizes)
    for name, phase in recipe.phases.items():
        try:
            check_phase(phase.train, phase.data, recipe.layout, recipe.model, sizes, num_ranks=num_ranks)
        except ConfigError as error:
            raise ConfigError(f"phase {name} on {num_ranks} ranks: {error}") from None


def nominal_dimensions(recipe: Recipe) -> Dimensions:
    """Returns the sizes that the recipe's tokenizers will have; of a text tokenizer's folder, nothing is read.

    Raises:
        TokenizerError: as `nominal_image_tokenizer`.
        CheckpointError: `model.start` holds damaged weights.
    """
    vision = nominal_image_tokenizer(recipe)
    return Dimensions(
        vocab_size=_nominal_vocabulary(recipe),
        codebook_size=vision.codebook_size,
        code_width=vision.code_width,
        codes_per_position=vision.codes_per_position,
    )


def existing_start(recipe: Recipe) -> Path | None:
    """Returns the folder `model.start`; None while it does not exist."""
    start = recipe.model.start
    return Path(start) if start is not None and Path(start).exists() else None


def _nominal_vocabulary(recipe: Recipe) -> int:
    if start := existing_start(recipe):
        from pipelines.start import start_config

        return start_config(start).dimensions.vocab_size
    return QWEN_VOCABULARY if recipe.text.folder or recipe.model.start else recipe.text.padded_vocab_size


def nominal_image_tokenizer(recipe: Recipe) -> TokenizerConfig:
    """Returns the sizes of the image tokenizer in `vision.folder`; where there is none, those that the recipe asks for.

    Raises:
        TokenizerError: the folder exists and holds no image tokenizer.
    """
    if recipe.vision.folder is None or not Path(recipe.vision.folder).exists():
        return recipe.vision
    from ufork.vision.codec import read_config

    return read_config(Path(recipe.vision.folder))
