"""Sizes of the model. Values of released checkpoints are in `pipelines/recipes`; the defaults are the 0.5B body's."""

from typing import Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ufork.config import Config
from ufork.vocabulary import Task


class RqHeadConfig(Config):
    """The depth transformer that predicts the codes of one image position (spec of the release, section 6)."""

    width: PositiveInt = 896
    """Features of its residual stream."""
    attention_width: PositiveInt = 3584
    """Features that queries, keys and values are spread over."""
    num_heads: PositiveInt = 32
    num_blocks: PositiveInt = 6
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.attention_width % self.num_heads:
            raise ValueError(f"attention_width {self.attention_width} is not a multiple of num_heads {self.num_heads}")
        return self


class ModelConfig(Config):
    """A Y: a trunk, and per task a branch with its norm and head."""

    width: PositiveInt = 896
    """Features of the residual stream."""
    mlp_width: PositiveInt = 4864
    num_heads: PositiveInt = 14
    num_kv_heads: PositiveInt = 2
    """Heads of keys and values, each shared by `num_heads / num_kv_heads` query heads."""
    trunk_layers: NonNegativeInt = 12
    """Layers that both tasks pass: the fork depth. With no branch layers this is the fully shared baseline."""
    understanding_layers: NonNegativeInt = 12
    generation_layers: NonNegativeInt = 12
    tasks: tuple[Task, ...] = (Task.UNDERSTANDING, Task.GENERATION)
    """Branches that exist; a single one makes an expert."""
    rope_theta: PositiveFloat = 1e6
    norm_eps: PositiveFloat = 1e-6
    tie_text_head: bool = True
    """Whether the text head reads the token embedding's weight."""
    initializer_range: PositiveFloat = 0.02
    """Standard deviation of the body's initial weights."""
    rq_head: RqHeadConfig = RqHeadConfig()

    @property
    def head_width(self) -> int:
        """Features of one attention head."""
        return self.width // self.num_heads

    def branch_layers(self, task: Task) -> int:
        """Depth of the branch of `task`."""
        return self.understanding_layers if task is Task.UNDERSTANDING else self.generation_layers

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.width % self.num_heads or self.head_width % 2:
            raise ValueError(f"width {self.width} over num_heads {self.num_heads} must be a whole, even number")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if len(set(self.tasks)) != len(self.tasks) or not self.tasks:
            raise ValueError("tasks must name at least one task, each once")
        return self


class Dimensions(Config):
    """Sizes that the tokenizers decide, not the recipe."""

    vocabulary_size: PositiveInt
    """Rows of the token embedding."""
    codebook_size: PositiveInt
    """Codes to choose from at each depth."""
    code_width: PositiveInt
    """Features of a code's embedding."""
    codes_per_position: PositiveInt
    """Residual depth."""
