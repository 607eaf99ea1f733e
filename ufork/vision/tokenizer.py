"""The interface of image tokenizers' networks. `codec.ImageCodec` wraps either kind for the rest of ufork.

    images uint8 -> encode_images -> codes        codes -> decode_images -> images

Shapes: B images, H x W pixels, R x S grid of positions, C codes per position, K rows of the codebook, E their width.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from ufork.vision.config import TokenizerConfig
from ufork.vision.quantizer import ResidualQuantizer


class ImageTokenizer(nn.Module, ABC):
    """A network between images and the codes of a residual quantizer."""

    config_class: ClassVar[type[TokenizerConfig]]
    """Configuration of this kind of tokenizer; `__init__` takes nothing else."""
    batch_images: ClassVar[int]
    """Images per pass, which bounds its memory."""
    config: TokenizerConfig
    quantizer: ResidualQuantizer

    @property
    def codebook(self) -> Tensor:
        """Vectors of the codes: fp32 KE."""
        return self.quantizer.codebook

    @abstractmethod
    def encode_images(self, images_BHW3: Tensor) -> Tensor:
        """Returns the codes, int64 BRSC, of uint8 images whose sides are multiples of `config.patch_px`."""

    @abstractmethod
    def decode_images(self, codes_BRSC: Tensor) -> Tensor:
        """Returns uint8 images BHW3 of codes int64; leading codes only give coarser images."""
