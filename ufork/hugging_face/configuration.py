"""UniFork's config in transformers: config.json -> ufork's own configs of body, image tokenizer and sampling."""

from typing import Any

from transformers import PreTrainedConfig

from ufork.model.config import Dimensions, ModelConfig
from ufork.vision.codec import NETWORKS
from ufork.vision.config import TokenizerConfig
from ufork.vision.tokenizer import ImageTokenizer
from ufork.vocabulary import Task


class UniForkConfig(PreTrainedConfig):
    """Sizes of a model: `ufork.model.config.ModelConfig` at the top, with Qwen2's names, other configs below it."""

    model_type = "unifork"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 0
    image_token_id: int = 0
    """Stands for an image in the text, once for each position and for the marks at its begin and end."""
    image_tokenizer: dict[str, Any] | None = None
    """`ufork.vision.config.TokenizerConfig` of its `kind`."""
    drawing: dict[str, Any] | None = None
    """`ufork.infer.config.DrawConfig`: how drawings are sampled unless told otherwise."""

    def body(self) -> ModelConfig:
        """Returns the sizes of trunk, branches and heads."""
        values = {name: getattr(self, name) for name in ModelConfig.__annotations__ if hasattr(self, name)}
        return ModelConfig(**{**values, "tasks": tuple(Task(task) for task in self.tasks)})

    def network(self) -> type[ImageTokenizer]:
        """Returns the kind of image tokenizer."""
        return NETWORKS[(self.image_tokenizer or {})["kind"]]

    def vision(self) -> TokenizerConfig:
        """Returns the sizes of the image tokenizer."""
        values = {name: value for name, value in (self.image_tokenizer or {}).items() if name != "kind"}
        return self.network().config_class(**values)

    def dimensions(self) -> Dimensions:
        """Returns the sizes that follow from the tokenizers."""
        vision = self.vision()
        return Dimensions(
            vocab_size=self.vocab_size,
            codebook_size=vision.codebook_size,
            code_width=vision.code_width,
            codes_per_position=vision.codes_per_position,
        )
