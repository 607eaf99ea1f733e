"""Config of the alignment of a model's image and text features."""

from typing import Literal

from pydantic import Field, PositiveInt

from ufork.config import Config
from ufork.vocabulary import Task

Pooling = Literal["mean", "last"]


class AlignmentConfig(Config):
    """Which pairs are compared, and how."""

    tasks: tuple[Task, ...] = (Task.UNDERSTANDING, Task.GENERATION)
    """Paths to follow; those that the model lacks are left out."""
    num_pairs: int = Field(default=1000, ge=20, le=10**6)
    """Pairs of an image and a text, no two with the same text."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Decides which pairs are taken, and the permutations."""
    pooling: Pooling = "mean"
    """A sample's features: the `mean` over its image positions or text tokens, or the `last` of them."""
    num_neighbours: PositiveInt = 10
    """Nearest neighbours that mutual alignment compares (k of arXiv 2405.07987)."""
    clip_quantile: float = Field(default=0.95, gt=0, le=1)
    """Quantile of absolute values at which features are clipped before neighbours are looked for; 1 clips nothing."""
    num_permutations: int = Field(default=20, ge=2, le=10_000)
    """Permutations of the pairs, whose scores are the null."""
    text_layer: int | None = None
    """Layer that all layers' image features are compared with the text features of, 0 being the input of the first and
    -1 the last; by default each layer's own, or the last of an external text model."""
