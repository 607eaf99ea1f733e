"""Model sizes. The defaults are those of the 0.5B body; `pipelines/recipes` has those of the released checkpoints."""

from typing import Annotated, Any, Self

from pydantic import (
    Field,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ufork.config import Config
from ufork.vocabulary import Task

MAX_WIDTH = 2**24
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
"""Size of one dimension of a weight; the bound only catches errors."""
MAX_LAYERS = 1000
NumLayers = Annotated[int, Field(ge=0, le=MAX_LAYERS)]


class RqHeadConfig(Config):
    """The depth transformer that predicts the codes of one image position (specification of the release, section 6)."""

    hidden_size: Width = 896
    """Width of its residual stream."""
    attention_size: Width = 3584
    """Width of queries, keys and values, all heads together."""
    num_attention_heads: Width = 32
    num_blocks: Annotated[int, Field(ge=1, le=MAX_LAYERS)] = 6
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
    """Sizes of the trunk, and of one branch per task with its norm and head; names as in transformers' configs.

    By default layers are Qwen2's. Qwen3's have a `head_dim` of their own, no `attention_bias`, and `use_qk_norm`.
    """

    hidden_size: Width = 896
    """Width of the residual stream."""
    intermediate_size: Width = 4864
    num_attention_heads: Width = 14
    num_key_value_heads: Width = 2
    """Heads of keys and values, each shared by `num_attention_heads / num_key_value_heads` query heads."""
    # configs on disk omit what is as before its key existed, and so equal those written then
    head_dim: Width = Field(default_factory=lambda given: given["hidden_size"] // given["num_attention_heads"])
    """Width of one attention head; default: `hidden_size / num_attention_heads`."""
    attention_bias: bool = Field(default=True, exclude_if=lambda has_bias: has_bias)
    """Whether the projections to queries, keys and values have biases; that of attention's output has none."""
    use_qk_norm: bool = Field(default=False, exclude_if=lambda is_used: not is_used)
    """Whether RMSNorm is applied to each head's queries and keys (arXiv 2302.05442), with a weight for either."""
    separate_first_layers: NumLayers = Field(default=0, exclude_if=lambda number: number == 0)
    """Layers per task below the shared ones, in colocated layouts; 0 is the Y. As in Uni-X (arXiv 2509.24365), the
    model is then separate at both ends, but by task: Uni-X has layers for image tokens and for text tokens instead."""
    trunk_layers: NumLayers = 12
    """Layers that both tasks share: the fork depth. Without branch layers the model is the fully shared baseline."""
    understanding_layers: NumLayers = 12
    generation_layers: NumLayers = 12
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
    def attention_size(self) -> int:
        """Width of the queries of all heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of the keys of all heads together, and of the values."""
        return self.num_key_value_heads * self.head_dim

    def branch_layers(self, task: Task) -> int:
        """Returns the number of layers of the branch of `task`."""
        return self.understanding_layers if task is Task.UNDERSTANDING else self.generation_layers

    def path_layers(self, task: Task) -> int:
        """Returns the number of layers that a sequence of `task` passes, from the embedding to the head."""
        return self.separate_first_layers + self.trunk_layers + self.branch_layers(task)

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if "head_dim" not in self.model_fields_set and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads};"
                " change one of them, or set head_dim"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd, and rotary embeddings rotate pairs of features")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads"
                f" {self.num_key_value_heads}"
            )
        if self.attention_size > MAX_WIDTH:
            raise ValueError(f"num_attention_heads times head_dim is {self.attention_size}, more than {MAX_WIDTH}")
        if len(set(self.tasks)) != len(self.tasks) or not self.tasks:
            raise ValueError("tasks must name at least one task, each once")
        return self

    @model_serializer(mode="wrap")
    def _without_usual_head_dim(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = serialize(self)
        if self.head_dim * self.num_attention_heads == self.hidden_size:
            values.pop("head_dim", None)
        return values


class Dimensions(Config):
    """Sizes that follow from the tokenizers rather than the recipe."""

    vocab_size: Width
    """Rows of the token embedding."""
    codebook_size: Width
    """Entries of the codebook."""
    code_width: Width
    """Width of a code's embedding."""
    codes_per_position: Width
    """Residual depth: codes at each image position."""
