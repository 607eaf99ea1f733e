"""Configuration of image tokenizers: what every kind has, ufork's own kind, and how a recipe gets its tokenizer.

    TokenizerConfig <- RqvaeConfig <- VisionConfig, the `vision` section of recipes
    TokenizerConfig <- VilaUConfig (`vila_u/config.py`)

A tokenizer's config is stored beside its weights as config.json.
"""

from typing import ClassVar, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from ufork.config import Config

MAX_IMAGE_PX = 4096
"""Largest side of the square images that a tokenizer takes."""


class FitConfig(Config):
    """Configuration of fitting the tokenizer to images."""

    steps: PositiveInt = 500
    """Optimizer steps; the learning rate falls to zero at the last one."""
    batch_images: int = Field(default=64, ge=1, le=2**16)
    """Images per step."""
    start_batches: int = Field(default=32, ge=1, le=10_000)
    """Batches whose patches determine the principal components and the first codebook."""
    codebook_rounds: int = Field(default=40, ge=0)
    """Rounds of Lloyd's algorithm for the first codebook."""
    limit_seconds: PositiveFloat | None = None
    """Shortens the schedule so that fitting ends within this time; the weights then depend on the machine's speed as
    well as on the seed. null for no limit."""
    learning_rate: float = Field(default=1e-3, gt=0, le=1e9)
    """Peak of the schedule, after the warm-up."""
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    """Share of the schedule in which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0, le=1e9)
    """AdamW's decay of the matrices."""
    repeat_power: float = Field(default=0.5, ge=0, le=1)
    """A patch that occurs n times in a batch has the weight n to this power in the reconstruction loss: 0 weights
    distinct patches equally, 1 weights pixels equally, so that plain background dominates."""
    commitment_weight: NonNegativeFloat = 0.25
    """Weight of the loss term that keeps the encoder's features close to their codes."""
    ema_decay: float = Field(default=0.98, ge=0, lt=1)
    """Decay of the codebook's moving counts and sums, per step."""
    restart_below_uses: NonNegativeFloat = 0.5
    """A code is dead when its moving count of uses per step is below this."""
    restart_every_steps: PositiveInt = 20
    """Interval in which dead codes are replaced by features of the batch."""
    restart_until_share: float = Field(default=0.7, ge=0, le=1)
    """Share of the schedule after which no code is replaced, so that the codebook settles."""


class TokenizerConfig(Config):
    """Sizes that every image tokenizer has: pixels -> grid of positions -> several codes per position."""

    kind: ClassVar[str]
    """Name of the kind of tokenizer in config.json."""

    image_px: int = Field(default=64, ge=1, le=MAX_IMAGE_PX)
    """Side of the square images."""
    patch_px: int = Field(default=8, ge=1, le=MAX_IMAGE_PX)
    """Side of the square patch of one position."""
    codes_per_position: int = Field(default=4, ge=1, le=1024)
    """Residual depth: number of codes whose vectors sum to a position's features."""
    codebook_size: int = Field(default=512, ge=2, le=65536)
    """Rows of the codebook, which all depths share; codes are stored as uint16."""
    code_width: int = Field(default=64, ge=1, le=2**16)
    """Width of a code's vector."""

    @model_validator(mode="after")
    def _patches_tile_the_image(self) -> Self:
        if self.image_px % self.patch_px:
            raise ValueError(f"image_px={self.image_px} is not a multiple of patch_px={self.patch_px}")
        return self

    @property
    def grid_rows(self) -> int:
        """Positions down the image."""
        return self.image_px // self.patch_px

    @property
    def grid_columns(self) -> int:
        """Positions across the image."""
        return self.image_px // self.patch_px

    @property
    def num_positions(self) -> int:
        """Positions of the image."""
        return self.grid_rows * self.grid_columns

    @property
    def tokens_per_image(self) -> int:
        """Tokens that a model reads of an image: its positions, and the marks at its begin and end."""
        return self.num_positions + 2


class RqvaeConfig(TokenizerConfig):
    """The autoencoder of patches that `ufork tokenizer fit` fits."""

    kind = "rqvae"

    hidden_width: int = Field(default=256, ge=1, le=2**16)
    """Width of the encoder's and the decoder's blocks."""
    num_encoder_blocks: int = Field(default=2, ge=0, le=1000)
    """Residual blocks of the encoder; they see one patch at a time."""
    num_decoder_blocks: int = Field(default=2, ge=0, le=1000)
    """Residual blocks of the decoder; they see one position at a time, without its neighbours."""


class VisionConfig(RqvaeConfig):
    """The image tokenizer of a run: one to fit, or a given one."""

    fit: FitConfig = FitConfig()
    """Configuration of fitting."""
    # omitted if there is none: the digest of a fit made before this key existed stays the same
    folder: str | None = Field(default=None, exclude_if=lambda folder: folder is None)
    """Folder of a finished image tokenizer of any kind, which is used as it is: nothing is fitted, and the other keys
    of this section only serve `ufork plan` while there is no such folder."""
