"""Trained models with their tokenizers, and models to convert."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tests.fuzz.mutations import json_text, safetensors
from tests.fuzz.targets.target import Target
from tests.golden_files import GOLDEN, write_vila_u
from tests.tiny import DIMENSIONS, tiny_config, tiny_model, tiny_tokenizer
from ufork.convert import qwen, unifork, vila_u
from ufork.convert.config import BranchingConfig
from ufork.convert.qwen import QwenConfig, qwen_shapes
from ufork.infer.config import AnswerConfig, DrawConfig
from ufork.infer.model import TrainedModel, save_trained
from ufork.model.weights import WeightsConfig
from ufork.vision.autoencoder import RQVAE
from ufork.vision.codec import ImageCodec
from ufork.vision.config import VisionConfig
from ufork.vocabulary import Task


def write_weights(folder: Path) -> None:
    """Writes a trained model with its tokenizers."""
    torch.manual_seed(0)
    sizes = DIMENSIONS.model_dump(exclude={"vocab_size"})
    codec = ImageCodec(RQVAE(VisionConfig(image_px=16, patch_px=8, hidden_width=16, **sizes)))
    weights = {name: parameter.detach() for name, parameter in tiny_model().named_parameters()}
    config = WeightsConfig(model=tiny_config(), dimensions=DIMENSIONS)
    save_trained(folder / "weights", weights, config, tiny_tokenizer(), codec, DrawConfig(top_k=4))


def read_weights(folder: Path) -> None:
    """Loads the model, draws and answers."""
    model = TrainedModel.load(folder / "weights")
    images = np.zeros((1, model.image_px, model.image_px, 3), np.uint8)
    if Task.UNDERSTANDING in model.tasks:
        model.answer(images, ["what?"], AnswerConfig(max_tokens=2))
    if Task.GENERATION in model.tasks:
        model.draw(["a dog"])


def write_qwen(folder: Path) -> None:
    """Writes a Qwen3 model as transformers saves it, with an index of its files."""
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=300)
    values = dict(model_type="qwen3", num_key_value_heads=2, head_dim=12, rms_norm_eps=1e-6, rope_theta=1e6, **sizes)
    path = folder / "qwen"
    tiny_tokenizer().save(path)
    (path / "config.json").write_text(json.dumps({**values, "tie_word_embeddings": False}))
    config = WeightsConfig(model=QwenConfig(**values).model(BranchingConfig()), dimensions=DIMENSIONS)
    shapes = qwen_shapes(QwenConfig(**values), config)
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, path / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(shapes, "model.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tower(folder: Path) -> None:
    """Writes the image tokenizer of the release's authors."""
    write_vila_u(folder)


def write_release(folder: Path) -> None:
    """Writes a checkpoint of the release's authors."""
    shutil.copytree(GOLDEN / "ckpt", folder / "release")


SMALL_HEAD = (
    "rq_head={hidden_size: 24, attention_size: 32, num_attention_heads: 4, num_blocks: 1}",
    *("codebook_size=16", "code_width=8", "codes_per_position=3"),
)


def convert(name: str, folder: Path) -> None:
    """Converts the model in `folder`."""
    match name:
        case "qwen":
            qwen.convert(folder / "qwen", folder / "out", SMALL_HEAD)
        case "vila_u":
            vila_u.convert(folder / "vision_tower", folder / "out")
        case _:
            unifork.convert(folder / "release", folder / "out")


MODELS: dict[str, Target] = {
    "weights": Target(
        write=write_weights,
        files={
            "weights/config.json": json_text,
            "weights/model.safetensors": safetensors,
            "weights/draw.json": json_text,
        },
        read=read_weights,
    ),
    "tokenizers": Target(
        write=write_weights,
        files={
            "weights/text/tokenizer.json": json_text,
            "weights/vision/config.json": json_text,
            "weights/vision/model.safetensors": safetensors,
        },
        read=read_weights,
    ),
    "qwen": Target(
        write=write_qwen,
        files={
            "qwen/config.json": json_text,
            "qwen/model.safetensors": safetensors,
            "qwen/model.safetensors.index.json": json_text,
        },
        read=partial(convert, "qwen"),
    ),
    "vila_u": Target(
        write=write_tower,
        files={"vision_tower/config.json": json_text, "vision_tower/model.safetensors": safetensors},
        read=partial(convert, "vila_u"),
    ),
    "release": Target(
        write=write_release,
        files={"release/config.json": json_text, "release/model.safetensors.index.json": json_text},
        read=partial(convert, "unifork"),
    ),
}
