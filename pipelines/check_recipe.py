"""Refuses a recipe that cannot train on a number of ranks, before any rank is started: pure, importable without torch.

recipe, number of ranks -> check_phase of every phase -> nothing, or a ConfigError that names phase, key and remedy
"""

from pipelines.recipe import Recipe
from ufork.errors import ConfigError
from ufork.model.config import Dimensions
from ufork.train.check_phase import check_phase

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
    """Returns the sizes that the recipe's tokenizers will have, without reading any."""
    return Dimensions(
        vocab_size=QWEN_VOCABULARY if recipe.text.folder else recipe.text.padded_vocab_size,
        codebook_size=recipe.vision.codebook_size,
        code_width=recipe.vision.code_width,
        codes_per_position=recipe.vision.codes_per_position,
    )
