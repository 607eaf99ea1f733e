"""VILA-U's decoder: convolutions that double the resolution level by level.

    latents -> convolution -> block, attention, block -> levels, from the lowest resolution: blocks (with attention),
    then nearest x 2 and a convolution -> norm, SiLU, convolution -> pixels

Esser et al., "Taming Transformers for High-Resolution Image Synthesis" (arXiv 2012.09841), figure 2 and table 7; the
specification of the release, section 3.

Shapes: B images, Z latent channels, C channels, R x S positions, H x W pixels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ufork.vision.vila_u.config import NORM_GROUPS, PixelDecoderConfig

_NORM_EPS = 1e-6


class PixelDecoder(nn.Module):
    """Draws pixels from latents."""

    def __init__(self, config: PixelDecoderConfig) -> None:
        super().__init__()
        channels = config.level_channels
        self.conv_in = _conv3(config.latent_channels, channels[-1])
        self.middle = nn.Sequential(
            ResidualBlock(channels[-1], channels[-1]),
            ChannelAttention(channels[-1]),
            ResidualBlock(channels[-1], channels[-1]),
        )
        self.levels = nn.ModuleList(
            Level(
                channels[min(level + 1, len(channels) - 1)],
                channels[level],
                num_blocks=config.blocks_per_level,
                attends=level in config.attention_levels,
                doubles=level > 0,
            )
            for level in range(len(channels))
        )
        self.norm_out = _norm(channels[0])
        self.conv_out = _conv3(channels[0], 3)

    def forward(self, latents_BZRS: Tensor) -> Tensor:
        """Returns pixels B3HW, about in -1..1."""
        hidden = self.middle(self.conv_in(latents_BZRS))
        for level in reversed(self.levels):
            hidden = level(hidden)
        return self.conv_out(F.silu(self.norm_out(hidden)))


class Level(nn.Module):
    """Blocks at one resolution, with attention after each where the level has it, and the step to twice of it."""

    def __init__(self, inputs: int, channels: int, *, num_blocks: int, attends: bool, doubles: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(channels if number else inputs, channels) for number in range(num_blocks)
        )
        self.attentions = nn.ModuleList(
            ChannelAttention(channels) if attends else nn.Identity() for _ in range(num_blocks)
        )
        self.upsample = nn.Sequential(nn.Upsample(scale_factor=2), _conv3(channels, channels)) if doubles else None

    def forward(self, hidden_BCRS: Tensor) -> Tensor:
        """Maps [B, inputs, R, S] to [B, C, R, S], or to [B, C, 2 R, 2 S]."""
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            hidden_BCRS = attention(block(hidden_BCRS))
        return hidden_BCRS if self.upsample is None else self.upsample(hidden_BCRS)


class ResidualBlock(nn.Module):
    """Two normalised convolutions, added to the input or, where the number of channels changes, to a map of it."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = _conv3(inputs, channels)
        self.norm2 = _norm(channels)
        self.conv2 = _conv3(channels, channels)
        self.shortcut = nn.Identity() if inputs == channels else nn.Conv2d(inputs, channels, 1)

    def forward(self, hidden_BCRS: Tensor) -> Tensor:
        """Maps [B, inputs, R, S] to BCRS."""
        changed = self.conv1(F.silu(self.norm1(hidden_BCRS)))
        changed = self.conv2(F.silu(self.norm2(changed)))
        return self.shortcut(hidden_BCRS) + changed


class ChannelAttention(nn.Module):
    """Attention of every position to all others, with one head of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden_BCRS: Tensor) -> Tensor:
        """Maps BCRS to BCRS."""
        normed = self.norm(hidden_BCRS)
        query, key, value = (
            projection(normed).flatten(2).transpose(1, 2) for projection in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return hidden_BCRS + self.out(mixed.transpose(1, 2).unflatten(2, hidden_BCRS.shape[2:]))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=_NORM_EPS)


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
