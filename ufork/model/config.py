"""Model sizes. The defaults are those of the 0.5B body; `pipelines/recipes` has those of the released checkpoints."""

from typing import Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ufork.config import Config
from ufork.vocabulary import Task


class RqHeadConfig(Config):
    """The depth transformer that predicts the codes of one image position (specification of the release, section 6)."""

    hidden_size: PositiveInt = 896
    """Width of its residual stream."""
    attention_size: PositiveInt = 3584
    """Width of queries, keys and values, all heads together."""
    num_attention_heads: PositiveInt = 32
    num_blocks: PositiveInt = 6
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_attention(self) -> Self:
        if self.attention_size % self.num_attention_heads:
            raise ValueError(
                f"attention_size {self.attention_size} is not a multiple of num_attention_heads"
                f" {self.num_attention_heads}"
            )
        return self


class ModelConfig(Config):
    """Sizes of the trunk, and of one branch per task with its norm and head; names as in transformers' Qwen2Config."""

    hidden_size: PositiveInt = 896
    """Width of the residual stream."""
    intermediate_size: PositiveInt = 4864
    num_attention_heads: PositiveInt = 14
    num_key_value_heads: PositiveInt = 2
    """Heads of keys and values, each shared by `num_attention_heads / num_key_value_heads` query heads."""
    # configs on disk omit a 0, and so equal those written before this key existed
    separate_first_layers: NonNegativeInt = Field(default=0, exclude_if=lambda number: number == 0)
    """Layers per task below the shared ones, in colocated layouts; 0 is the Y. As in Uni-X (arXiv 2509.24365), the
    model is then separate at both ends, but by task: Uni-X has layers for image tokens and for text tokens instead."""
    trunk_layers: NonNegativeInt = 12
    """Layers that both tasks share: the fork depth. Without branch layers the model is the fully shared baseline."""
    understanding_layers: NonNegativeInt = 12
    generation_layers: NonNegativeInt = 12
    tasks: tuple[Task, ...] = (Task.UNDERSTANDING, Task.GENERATION)
    """Branches to build; a single one makes a single-task expert."""
    rope_theta: PositiveFloat = 1e6
    rms_norm_eps: PositiveFloat = 1e-6
    tie_word_embeddings: bool = True
    """Whether the text head uses the weight of the token embedding."""
    initializer_range: PositiveFloat = 0.02
    """Standard deviation of the body's initial weights."""
    rq_head: RqHeadConfig = RqHeadConfig()

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def branch_layers(self, task: Task) -> int:
        """Returns the number of layers of the branch of `task`."""
        return self.understanding_layers if task is Task.UNDERSTANDING else self.generation_layers

    def path_layers(self, task: Task) -> int:
        """Returns the number of layers that a sequence of `task` passes, from the embedding to the head."""
        return self.separate_first_layers + self.trunk_layers + self.branch_layers(task)

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} over num_attention_heads {self.num_attention_heads} must be a whole,"
                " even number"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads"
                f" {self.num_key_value_heads}"
            )
        if len(set(self.tasks)) != len(self.tasks) or not self.tasks:
            raise ValueError("tasks must name at least one task, each once")
        return self


class Dimensions(Config):
    """Sizes that follow from the tokenizers rather than the recipe."""

    vocab_size: PositiveInt
    """Rows of the token embedding."""
    codebook_size: PositiveInt
    """Entries of the codebook."""
    code_width: PositiveInt
    """Width of a code's embedding."""
    codes_per_position: PositiveInt
    """Residual depth: codes at each image position."""
