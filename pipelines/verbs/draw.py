"""Draws one picture per prompt and writes them as one grid, in the order of the prompts."""

import argparse
from pathlib import Path

from pipelines.device_arguments import add_model_arguments, load_model, memory_errors
from pipelines.terminal import show

SAMPLING = {
    "guidance": (float, "strength of classifier-free guidance; 1 turns it off"),
    "temperature": (float, "divides the logits; 0 always takes the most likely code"),
    "top_k": (int, "number of most likely codes to sample from; 0 samples from all"),
    "top_p": (float, "probability mass to sample from"),
    "seed": (int, "seed of the first prompt; the following prompts have the next seeds"),
}
"""Keys of `ufork.infer.config.DrawConfig`; the weights' folder has the defaults."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the weights, the prompts and the sampling options."""
    add_model_arguments(parser)
    parser.add_argument("--prompt", action="append", required=True, help="what to draw; may be given several times")
    parser.add_argument(
        "--out", type=Path, required=True, help="picture to write; its extension is .png, .jpg, .jpeg or .webp"
    )
    for key, (kind, meaning) in SAMPLING.items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=kind, default=argparse.SUPPRESS, help=meaning)


def run(arguments: argparse.Namespace) -> None:
    """Draws the prompts.

    Raises:
        UforkError: the weights, a prompt, a value or the device is at fault, or the picture cannot be written.
    """
    from ufork.infer.config import DrawConfig
    from ufork.report.grid import check_writable, write_grid

    chosen = {key: value for key, value in vars(arguments).items() if key in SAMPLING}
    DrawConfig.from_mapping(chosen, origin="options")  # before anything is read
    check_writable(arguments.out)

    with memory_errors("Give fewer prompts at a time"):
        model = load_model(arguments.checkpoint, arguments)
        config = DrawConfig.from_mapping({**model.draw_config.model_dump(), **chosen}, origin="options")
        images = model.draw(arguments.prompt, config)
    write_grid(images, arguments.out)
    show(arguments.out)
