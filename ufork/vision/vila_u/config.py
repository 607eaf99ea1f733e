"""Sizes of VILA-U's image tokenizer. The defaults are those of the release for images of 256 pixels."""

from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, model_validator

from ufork.config import Config
from ufork.vision.config import MAX_IMAGE_PX, TokenizerConfig

MAX_WIDTH = 2**16
"""Largest size of one dimension of a weight."""
NORM_GROUPS = 32
"""Groups of channels that the decoder's norms normalise together."""


class PixelDecoderConfig(Config):
    """The convolutional decoder; level 0 has the image's resolution, each following one half of it."""

    latent_channels: int = Field(default=256, ge=1, le=MAX_WIDTH)
    """Channels of its input, which the codes' features are mapped to."""
    channels: int = Field(default=128, ge=1, le=MAX_WIDTH)
    """Channels that `channel_factors` multiply."""
    channel_factors: tuple[Annotated[int, Field(ge=1, le=MAX_WIDTH)], ...] = Field(
        default=(1, 1, 2, 2, 4), min_length=1, max_length=13
    )
    """Channels of each level over `channels`."""
    blocks_per_level: int = Field(default=3, ge=1, le=100)
    """Residual blocks of each level."""
    attention_levels: tuple[NonNegativeInt, ...] = (4,)
    """Levels with attention after each block."""

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * factor for factor in self.channel_factors)

    @model_validator(mode="after")
    def _groups_divide_channels(self) -> Self:
        if max(self.level_channels) > MAX_WIDTH:
            raise ValueError(f"channels of the levels are {self.level_channels}, more than {MAX_WIDTH}")
        if any(channels % NORM_GROUPS for channels in self.level_channels):
            raise ValueError(f"channels of the levels are {self.level_channels}, not multiples of {NORM_GROUPS}")
        return self


class VilaUConfig(TokenizerConfig):
    """VILA-U's tokenizer; `code_width` is also the width of the encoder."""

    kind = "vila_u"

    trained_px: int = Field(default=256, ge=1, le=MAX_IMAGE_PX)
    """Side of the images that the encoder was trained on; for another one its position embedding is interpolated."""
    intermediate_size: int = Field(default=4096, ge=1, le=MAX_WIDTH)
    """Width of the encoder's MLPs."""
    num_hidden_layers: int = Field(default=23, ge=1, le=1000)
    """Layers of the encoder: all of SigLIP's but its last."""
    num_attention_heads: int = Field(default=16, ge=1, le=MAX_WIDTH)
    decoder: PixelDecoderConfig = PixelDecoderConfig()

    @property
    def trained_grid(self) -> int:
        """Positions along a side of the images that the encoder was trained on."""
        return self.trained_px // self.patch_px

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.trained_px % self.patch_px:
            raise ValueError(f"trained_px={self.trained_px} is not a multiple of patch_px={self.patch_px}")
        if self.code_width % self.num_attention_heads:
            raise ValueError(
                f"code_width={self.code_width} is not a multiple of num_attention_heads={self.num_attention_heads}"
            )
        drawn_px = 2 ** (len(self.decoder.channel_factors) - 1)
        if self.patch_px != drawn_px:
            raise ValueError(
                f"patch_px={self.patch_px}, but a decoder of {len(self.decoder.channel_factors)} levels draws"
                f" {drawn_px} x {drawn_px} pixels per position"
            )
        return self
