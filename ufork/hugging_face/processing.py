"""What transformers calls a model's processor: text and images to token ids and pixels, laid out as in training.

    images -> RGB, padded to a square -> pixel values    text with a placeholder per image -> token ids

An exported folder holds this module joined with what it uses (`bundle.py`).
"""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images, to_numpy_array
from transformers.processing_utils import ProcessorMixin

from ufork.vision.images import in_rgb, padded
from ufork.vocabulary import PADDING


class UniForkImageProcessor(BaseImageProcessor):
    """Lays each image, scaled and whole, in the middle of a grey square, as training does for questions."""

    model_input_names = ["pixel_values"]

    def __init__(self, image_px: int = 0, **others: Any):
        """`image_px` is the side of the square."""
        super().__init__(**others)
        self.image_px = image_px

    def preprocess(self, images: Any, return_tensors: str | None = "pt", **unused: Any) -> BatchFeature:
        """Returns `pixel_values` [M, 3, image_px, image_px] in -1..1, of PIL images, arrays, paths or addresses."""
        flat = make_flat_list_of_images(self.fetch_images(images))
        squares = [np.array(padded(in_rgb(_pil(image)), self.image_px)) for image in flat]
        values = torch.from_numpy(np.stack(squares)).float() / 127.5 - 1
        return BatchFeature({"pixel_values": values.permute(0, 3, 1, 2)}, tensor_type=return_tensors)


class UniForkProcessor(ProcessorMixin):
    """Image processor and tokenizer; replaces each placeholder `<|vision_pad|>` by as many as an image has tokens."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        tokens_per_image: int = 0,
        chat_template: str | None = None,
    ):
        """`tokens_per_image` counts the positions of an image and the marks at its begin and end."""
        self.tokens_per_image = tokens_per_image
        self.image_token = PADDING
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: None = None,
        audio: None = None,
        return_tensors: str | None = "pt",
        **others: Any,
    ) -> BatchFeature:
        """Returns `input_ids` and `attention_mask` of the text, padded on the left, and `pixel_values` of the images.

        Args:
            images: one per placeholder, in the order of the text.
            text: one or more texts.
            videos: none; transformers passes it to every processor.
            audio: none, likewise.
            return_tensors: as transformers' tokenizers take it.
            others: further arguments of the tokenizer.
        """
        pixels = {} if images is None else self.image_processor(images, return_tensors=return_tensors)
        texts = [text] if isinstance(text, str) else list(text or [])
        num_placeholders = sum(each.count(self.image_token) for each in texts)
        num_images = len(pixels["pixel_values"]) if pixels else 0
        if text is not None and num_placeholders != num_images:
            raise ValueError(f"the text has {num_placeholders} times {self.image_token} for {num_images} images")
        if not texts:
            return BatchFeature(pixels)
        texts = [each.replace(self.image_token, self.image_token * self.tokens_per_image) for each in texts]
        options = {"padding": True, "padding_side": "left", "add_special_tokens": False, **others}
        tokens = self.tokenizer(texts, return_tensors=return_tensors, **options)
        names = ("input_ids", "attention_mask")
        return BatchFeature({**{name: tokens[name] for name in names}, **pixels})


def _pil(image: Any) -> Image.Image:
    return ImageOps.exif_transpose(image) if isinstance(image, Image.Image) else Image.fromarray(to_numpy_array(image))
