"""SigLIP's vision encoder as VILA-U uses it: without its last layer and its final norm.

    pixels -> patches embedded + position embedding -> layers -> features of every patch

Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (arXiv 2303.15343); the specification of the release,
section 3.

Shapes: B images, H x W pixels, R x S grid of patches, N = R S patches, E width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ufork.vision.vila_u.config import VilaUConfig

_NORM_EPS = 1e-6


class SiglipEncoder(nn.Module):
    """A vision transformer."""

    def __init__(self, config: VilaUConfig) -> None:
        super().__init__()
        width, patch_px = config.code_width, config.patch_px
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch_px, stride=patch_px)
        self.position_embedding_NE = nn.Parameter(torch.zeros(config.trained_grid**2, width))
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.trained_grid = config.trained_grid

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Returns features BRSE of `pixels` in -1..1; H and W are multiples of the patch's side."""
        patches_BERS = self.patch_embedding(pixels_B3HW)
        rows, columns = patches_BERS.shape[2:]
        hidden_BNE = patches_BERS.flatten(2).transpose(1, 2) + self._positions(rows, columns)
        for layer in self.layers:
            hidden_BNE = layer(hidden_BNE)
        return hidden_BNE.unflatten(1, (rows, columns))

    def _positions(self, rows: int, columns: int) -> Tensor:
        """The position embedding NE, interpolated for another grid than the trained one."""
        grid = self.trained_grid
        if (rows, columns) == (grid, grid):
            return self.position_embedding_NE
        trained_1ERS = self.position_embedding_NE.T.unflatten(1, (grid, grid))[None]
        return F.interpolate(trained_1ERS, size=(rows, columns), mode="bicubic", align_corners=False)[0].flatten(1).T


class EncoderLayer(nn.Module):
    """Pre-normalised attention and a GELU MLP, each added to the residual stream."""

    def __init__(self, config: VilaUConfig) -> None:
        super().__init__()
        width = config.code_width
        self.attention_norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attention = Attention(width, config.num_attention_heads)
        self.mlp_norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp_up = nn.Linear(width, config.intermediate_size)
        self.mlp_down = nn.Linear(config.intermediate_size, width)

    def forward(self, hidden_BNE: Tensor) -> Tensor:
        """Maps BNE to BNE."""
        hidden_BNE = hidden_BNE + self.attention(self.attention_norm(hidden_BNE))
        return hidden_BNE + self.mlp_down(F.gelu(self.mlp_up(self.mlp_norm(hidden_BNE)), approximate="tanh"))


class Attention(nn.Module):
    """Attention of every patch to all patches of its image."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, hidden_BNE: Tensor) -> Tensor:
        """Maps BNE to BNE."""
        query, key, value = (
            projection(hidden_BNE).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))
