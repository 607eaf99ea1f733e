"""The autoencoder around the quantizer, for images with repeated patches, on a CPU.

    patches [..., P] in -1..1 -> encoder -> features [..., W] -> quantizer -> codes [..., C]
    codes -> sum of their vectors -> decoder -> patches

Encoder and decoder see one patch at a time. Equal patches therefore have equal codes at any position: a prior over
codes need not learn more than the picture, and fitting processes each distinct patch of a batch once. All computation
is matrix products over positions, which run near a CPU's peak.

Shapes: P values of a patch, W width of the features, C codes per position.
"""

from torch import Tensor, nn

from ufork.vision.config import RqvaeConfig
from ufork.vision.patches import distinct, from_bytes, to_bytes, to_images, to_patches
from ufork.vision.quantizer import Quantized, ResidualQuantizer
from ufork.vision.tokenizer import ImageTokenizer


class RQVAE(ImageTokenizer):
    """Autoencoder of patches with residual quantization."""

    config: RqvaeConfig
    config_class = RqvaeConfig
    batch_images = 256

    def __init__(self, config: RqvaeConfig) -> None:
        super().__init__()
        self.config = config
        patch_values, width = 3 * config.patch_px**2, config.hidden_width
        self.encoder = Mapping(patch_values, config.code_width, width=width, num_blocks=config.num_encoder_blocks)
        self.quantizer = ResidualQuantizer(
            codebook_size=config.codebook_size,
            code_width=config.code_width,
            codes_per_position=config.codes_per_position,
        )
        self.decoder = Mapping(config.code_width, patch_values, width=width, num_blocks=config.num_decoder_blocks)

    def encode(self, patches: Tensor) -> Tensor:
        """Returns the codes, int64 [..., C], of `patches` [..., P] in -1..1."""
        return self.quantizer.encode(self.encoder(patches))

    def decode(self, codes: Tensor) -> Tensor:
        """Returns patches [..., P], about in -1..1, of `codes` [..., C]; leading codes only give coarser patches."""
        return self.decoder(self.quantizer.embed(codes))

    def encode_images(self, images_BHW3: Tensor) -> Tensor:
        """As `ImageTokenizer.encode_images`, on the CPU; each distinct patch is encoded once."""
        patches, numbers = distinct(to_patches(images_BHW3, self.config.patch_px))
        return self.encode(from_bytes(patches)).cpu()[numbers]

    def decode_images(self, codes_BRSC: Tensor) -> Tensor:
        """As `ImageTokenizer.decode_images`."""
        return to_images(to_bytes(self.decode(codes_BRSC)), self.config.patch_px)

    def forward(self, patches: Tensor) -> tuple[Tensor, Quantized]:
        """Returns the reconstruction of `patches` [..., P] in -1..1, and the quantizer's result."""
        quantized = self.quantizer(self.encoder(patches))
        return self.decoder(quantized.features), quantized


class Mapping(nn.Module):
    """A linear map plus a correction by residual blocks that is zero at initialisation."""

    def __init__(self, inputs: int, outputs: int, *, width: int, num_blocks: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.widen = nn.Linear(inputs, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(num_blocks)))
        self.norm = nn.LayerNorm(width)
        self.narrow = nn.Linear(width, outputs)
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)

    def forward(self, values: Tensor) -> Tensor:
        """Maps [..., inputs] to [..., outputs]."""
        return self.linear(values) + self.narrow(self.norm(self.blocks(self.widen(values))))


class Block(nn.Module):
    """Residual two-layer perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps [..., width] to the same shape."""
        return hidden + self.narrow(nn.functional.gelu(self.widen(self.norm(hidden))))
