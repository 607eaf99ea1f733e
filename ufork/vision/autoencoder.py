"""The autoencoder around the quantizer, shaped for patches that repeat and for a CPU.

    patches [..., P] in -1..1 -> encoder -> features [..., W] -> quantizer -> codes [..., C]
    codes -> sum of their vectors -> decoder -> patches

Encoder and decoder see one patch at a time. Equal patches then have equal codes wherever they stand, so that a prior
over codes has no more to learn than the picture itself, and fitting needs each distinct patch of a batch only once.
All of it is matrix products over positions, which a CPU runs near its peak.

Shapes: P values of a patch, W width of the features, C codes per position.
"""

from torch import Tensor, nn

from ufork.vision.config import VisionConfig
from ufork.vision.quantizer import Quantized, ResidualQuantizer


class RQVAE(nn.Module):
    """Residual-quantised autoencoder of patches."""

    def __init__(self, config: VisionConfig) -> None:
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
        """Codes int64 [..., C] of `patches` [..., P] in -1..1."""
        return self.quantizer.encode(self.encoder(patches))

    def decode(self, codes: Tensor) -> Tensor:
        """Patches [..., P], about -1..1, of `codes` [..., C] or fewer leading ones."""
        return self.decoder(self.quantizer.embed(codes))

    def forward(self, patches: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction of `patches` [..., P] in -1..1, and what the quantizer made of them."""
        quantized = self.quantizer(self.encoder(patches))
        return self.decoder(quantized.features), quantized


class Mapping(nn.Module):
    """A linear map plus residual blocks' correction of it, which is zero at the start."""

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
        """[..., inputs] -> [..., outputs]."""
        return self.linear(values) + self.narrow(self.norm(self.blocks(self.widen(values))))


class Block(nn.Module):
    """Residual perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Same shape out as in: [..., width]."""
        return hidden + self.narrow(nn.functional.gelu(self.widen(self.norm(hidden))))
