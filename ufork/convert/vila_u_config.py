"""Sizes of VILA-U's image tokenizer and RQ head, from the config files that come with them.

vision_tower/config.json, and SigLIP's config.json where `pretrained_model` names a folder -> TowerSizes
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from ufork.config import Config
from ufork.convert.foreign_config import ForeignConfig
from ufork.errors import CheckpointError, ConfigError
from ufork.model.config import Dimensions, RqHeadConfig, Width
from ufork.model.weights import CONFIG_NAME
from ufork.vision.vila_u.config import PixelDecoderConfig, VilaUConfig

_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SIGLIP_MODELS: dict[str, dict[str, int]] = {
    f"siglip-large-patch16-{px}": {**_LARGE, "image_size": px, "patch_size": 16} for px in (256, 384)
}
"""Sizes of the models that a config may name without a folder, by the last part of the name."""
_MODELS = "VILA-U's image tokenizers (folders vision_tower) with one shared codebook"


class _SiglipVision(ForeignConfig):
    """Defaults are those of transformers' SiglipVisionConfig, whose files leave them out."""

    hidden_size: PositiveInt = 768
    intermediate_size: PositiveInt = 3072
    num_hidden_layers: int = Field(default=12, ge=2)
    num_attention_heads: PositiveInt = 12
    image_size: PositiveInt = 224
    patch_size: PositiveInt = 16
    layer_norm_eps: float = Field(default=1e-6, ge=1e-6, le=1e-6)
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"


class _Siglip(ForeignConfig):
    models = _MODELS
    vision_config: _SiglipVision


class _Decoder(ForeignConfig):
    ch: PositiveInt
    ch_mult: tuple[PositiveInt, ...]
    num_res_blocks: int = Field(ge=0)
    attn_resolutions: tuple[PositiveInt, ...]
    resolution: PositiveInt
    z_channels: PositiveInt

    def sizes(self) -> PixelDecoderConfig:
        levels = range(len(self.ch_mult))
        return PixelDecoderConfig(
            latent_channels=self.z_channels,
            channels=self.ch,
            channel_factors=self.ch_mult,
            blocks_per_level=self.num_res_blocks + 1,
            attention_levels=tuple(level for level in levels if self.resolution >> level in self.attn_resolutions),
        )


class _Rqvae(ForeignConfig):
    embed_dim: PositiveInt
    n_embed: PositiveInt
    code_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    shared_codebook: Literal[True]
    bottleneck_type: Literal["rq"] = "rq"
    decoder_latent_shape: None = None
    """A grid that latents are interpolated to before they are decoded; VILA-U's model for 384 px has one."""
    ddconfig: _Decoder
    pretrained_model: str = "google/siglip-large-patch16-256"


class _Block(ForeignConfig):
    n_head: PositiveInt


class _Head(ForeignConfig):
    block: _Block
    n_layer: PositiveInt


class _RqTransformer(ForeignConfig):
    embed_dim: PositiveInt
    embed_dim_out: PositiveInt
    input_embed_dim_2: PositiveInt
    head: _Head


class _Tower(ForeignConfig):
    models = _MODELS
    model_type: Literal["rqvaesigliptransformer_model"]
    rqvaesiglip: _Rqvae
    rqtransformer: _RqTransformer | None = None


@dataclass(frozen=True, kw_only=True)
class TowerSizes:
    """What a tower's config says."""

    tokenizer: VilaUConfig
    rq_head: "RqHeadSizes | None"


class RqHeadSizes(Config):
    """An RQ head and what it is attached to."""

    rq_head: RqHeadConfig
    body_size: Width
    """Width of the body's states that it takes."""
    codebook_size: PositiveInt
    code_width: PositiveInt
    codes_per_position: PositiveInt

    @property
    def dimensions(self) -> Dimensions:
        """Sizes that an RQ head takes from the tokenizer; it has no vocabulary."""
        return Dimensions(
            vocab_size=1,
            codebook_size=self.codebook_size,
            code_width=self.code_width,
            codes_per_position=self.codes_per_position,
        )


def read_tower_sizes(tower: Path, *, image_px: int | None = None) -> TowerSizes:
    """Reads the config of a `vision_tower` folder.

    Args:
        tower: the folder.
        image_px: side of the images to encode and to draw; by default the encoder's own.

    Raises:
        CheckpointError: a config is missing or damaged, or of a tokenizer that ufork does not compute.
        ConfigError: `image_px` is no multiple of the patch's side.
    """
    config = _Tower.read(tower)
    rqvae, siglip = config.rqvaesiglip, _siglip_sizes(tower, config.rqvaesiglip.pretrained_model)
    if rqvae.embed_dim != siglip.hidden_size:
        raise CheckpointError(
            f"{tower / CONFIG_NAME}: codes of width {rqvae.embed_dim} and an encoder of width {siglip.hidden_size};"
            " expected equal widths"
        )
    if image_px is not None and image_px % siglip.patch_size:
        raise ConfigError(f"image_px={image_px} is not a multiple of the patch's side, {siglip.patch_size} px")
    try:
        tokenizer = VilaUConfig(
            image_px=image_px or siglip.image_size,
            patch_px=siglip.patch_size,
            codes_per_position=rqvae.code_shape[2],
            codebook_size=rqvae.n_embed,
            code_width=rqvae.embed_dim,
            trained_px=siglip.image_size,
            intermediate_size=siglip.intermediate_size,
            num_hidden_layers=siglip.num_hidden_layers - 1,
            num_attention_heads=siglip.num_attention_heads,
            decoder=rqvae.ddconfig.sizes(),
        )
        rq_head = _rq_head_sizes(config.rqtransformer, tokenizer)
    except ValueError as error:
        raise CheckpointError(f"{tower / CONFIG_NAME}: not a tokenizer that ufork computes: {error}") from None
    return TowerSizes(tokenizer=tokenizer, rq_head=rq_head)


def _rq_head_sizes(config: _RqTransformer | None, tokenizer: VilaUConfig) -> RqHeadSizes | None:
    if config is None:
        return None
    return RqHeadSizes(
        rq_head=RqHeadConfig(
            hidden_size=config.embed_dim_out,
            attention_size=config.embed_dim,
            num_attention_heads=config.head.block.n_head,
            num_blocks=config.head.n_layer,
        ),
        body_size=config.input_embed_dim_2,
        **tokenizer.model_dump(include={"codebook_size", "code_width", "codes_per_position"}),
    )


def _siglip_sizes(tower: Path, name: str) -> _SiglipVision:
    """Sizes of the SigLIP model in the folder `name`, which may be relative to the tower, or else of that name."""
    folder = tower / name
    if folder.is_dir():
        return _Siglip.read(folder).vision_config
    known = SIGLIP_MODELS.get(name.rpartition("/")[2])
    if known is None:
        raise CheckpointError(
            f"{tower / CONFIG_NAME}: pretrained_model {name!r} is no folder, and known by name are only"
            f" {', '.join(SIGLIP_MODELS)}; put that model's {CONFIG_NAME} into {folder}"
        )
    return _SiglipVision(**known)
