"""Reference data of the authors' release: what `tests/golden/README.md` describes."""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from ufork.convert.vila_u_names import tokenizer_name
from ufork.vision.codec import ImageCodec
from ufork.vision.vila_u.config import PixelDecoderConfig, VilaUConfig
from ufork.vision.vila_u.tokenizer import VilaU

GOLDEN = Path(__file__).parent / "golden"
TOWER_PREFIX = "model.vision_tower.vision_tower."
TOKENIZER = VilaUConfig(
    image_px=16,
    patch_px=4,
    codes_per_position=4,
    codebook_size=128,
    code_width=32,
    trained_px=16,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    decoder=PixelDecoderConfig(
        latent_channels=16, channels=32, channel_factors=(2, 1, 1), blocks_per_level=1, attention_levels=(2,)
    ),
)
"""Sizes of the checkpoint's image tokenizer."""


def golden(name: str) -> dict[str, Tensor]:
    """Returns the tensors of a file of inputs and outputs."""
    return load_file(GOLDEN / f"{name}.safetensors")


def golden_checkpoint() -> dict[str, Tensor]:
    """Returns the tensors of the checkpoint, which is stored in several files."""
    files = sorted((GOLDEN / "ckpt").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def golden_tower() -> dict[str, Tensor]:
    """Returns the checkpoint's image tokenizer and RQ head by the names that VILA-U gives them."""
    tensors = golden_checkpoint().items()
    return {name.removeprefix(TOWER_PREFIX): tensor for name, tensor in tensors if name.startswith(TOWER_PREFIX)}


def write_vila_u(folder: Path) -> Path:
    """Writes the checkpoint's image tokenizer and RQ head as VILA-U ships them; returns its folder `vision_tower`."""
    tower = folder / "vision_tower"
    for name in ("siglip", tower.name):
        shutil.copytree(GOLDEN / "ckpt" / name, folder / name)
    save_file(golden_tower(), tower / "model.safetensors")
    return tower


def golden_codec() -> ImageCodec:
    """Returns the checkpoint's image tokenizer."""
    model, tower = VilaU(TOKENIZER), golden_tower()
    tower["rqvaesiglip.quantizer.codebooks.0.weight"] = tower["rqvaesiglip.quantizer.codebooks.0.weight"][:-1]
    model.load_state_dict({name: tower[tokenizer_name(name)] for name in model.state_dict()})
    return ImageCodec(model)
