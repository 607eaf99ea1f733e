"""A run of the tiny model, ready to train."""

import subprocess
import sys

import torch
import yaml

from tests.tiny import DIMENSIONS, tiny_config, tiny_tokenizer, write_codes_source
from ufork.run_folder import RunFolder
from ufork.vision.autoencoder import RQVAE
from ufork.vision.codec import ImageCodec
from ufork.vision.config import VisionConfig

RECIPE = {
    "model": tiny_config().model_dump(mode="json"),
    "data": {
        "understanding": [{"folder": "codes/tiny/train"}],
        "generation": [{"folder": "codes/tiny/train"}],
        "seq_len": 200,
        "num_lanes": 4,
    },
    "train": {
        "steps": 4,
        "global_batch_size": {"understanding": 2, "generation": 2},
        "optimizer": "sgd",
        "learning_rate": 0.3,
        "precision": "fp32",
        "wandb": {"mode": "disabled"},
        "log_every_steps": 1,
    },
    "phases": {
        "align": {"train": {"trainable": ["projector", "rq_head"]}},
        "all": {"train": {"draw_every_steps": 2, "drawing_prompts": ["a dog", "a cat"]}},
    },
}


def make_run(folder, name):
    """A recipe and all that `ufork train` reads."""
    run = RunFolder(folder / name)
    write_codes_source(run.codes / "tiny" / "train", num_samples=40)
    tiny_tokenizer().save(run.text_tokenizer)
    torch.manual_seed(0)
    vision = VisionConfig(
        image_px=16,
        patch_px=8,
        codes_per_position=DIMENSIONS.codes_per_position,
        codebook_size=DIMENSIONS.codebook_size,
        code_width=DIMENSIONS.code_width,
        hidden_width=16,
    )
    ImageCodec(RQVAE(vision)).save(run.vision_tokenizer)
    recipe = folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump({"run": {"name": name, "folder": str(folder)}, **RECIPE}))
    return recipe, run


def train(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "train", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr
