"""VILA-U's image tokenizer: pixels -> SigLIP -> residual quantizer -> codes -> decoder -> pixels.

Wu et al., "VILA-U: a Unified Foundation Model Integrating Visual Understanding and Generation" (arXiv 2409.04429); the
specification of the release, section 3. Everything is computed in fp32, on GPUs too: in bf16 or TF32 other codes are
chosen.

Shapes: B images, H x W pixels, R x S grid of positions, E width of the features, C codes per position.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ufork.vision.patches import from_bytes, to_bytes
from ufork.vision.quantizer import ResidualQuantizer
from ufork.vision.tokenizer import ImageTokenizer
from ufork.vision.vila_u.config import VilaUConfig
from ufork.vision.vila_u.decoder import PixelDecoder
from ufork.vision.vila_u.encoder import SiglipEncoder


class VilaU(ImageTokenizer):
    """VILA-U's tokenizer; images of another size than the trained one are encoded with interpolated positions."""

    config: VilaUConfig
    config_class = VilaUConfig
    batch_images = 8

    def __init__(self, config: VilaUConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SiglipEncoder(config)
        self.quantizer = ResidualQuantizer(
            codebook_size=config.codebook_size,
            code_width=config.code_width,
            codes_per_position=config.codes_per_position,
        )
        self.post_quantizer = nn.Conv2d(config.code_width, config.decoder.latent_channels, 1)
        self.decoder = PixelDecoder(config.decoder)

    def features(self, pixels_B3HW: Tensor) -> Tensor:
        """Returns features BRSE, which are quantized, of pixels in -1..1."""
        with _full_precision(pixels_B3HW.device):
            return self.encoder(pixels_B3HW.float())

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Returns the codes, int64 BRSC, of pixels in -1..1."""
        return self.quantizer.encode(self.features(pixels_B3HW))

    def decode(self, codes_BRSC: Tensor) -> Tensor:
        """Returns pixels B3HW, about in -1..1, of codes."""
        features_BRSE = self.quantizer.embed(codes_BRSC)
        with _full_precision(features_BRSE.device):
            return self.decoder(self.post_quantizer(features_BRSE.permute(0, 3, 1, 2)))

    def encode_images(self, images_BHW3: Tensor) -> Tensor:
        """As `ImageTokenizer.encode_images`."""
        return self.encode(from_bytes(images_BHW3).permute(0, 3, 1, 2))

    def decode_images(self, codes_BRSC: Tensor) -> Tensor:
        """As `ImageTokenizer.decode_images`."""
        return to_bytes(self.decode(codes_BRSC)).permute(0, 2, 3, 1)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Computes in fp32 whatever surrounds it; cuDNN's convolutions use TF32 unless told otherwise."""
    convolutions = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.autocast(device.type, enabled=False), convolutions:
        yield
