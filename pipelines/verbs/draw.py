"""Draws one picture per prompt and writes them as one grid, in the order of the prompts."""

import argparse
from pathlib import Path

SAMPLING = {
    "guidance": (float, "strength of classifier-free guidance; 1 turns it off"),
    "temperature": (float, "divides the logits"),
    "top_k": (int, "likeliest codes kept; 0 keeps all"),
    "top_p": (float, "probability mass kept"),
    "seed": (int, "of the draws"),
}
"""Keys of `ufork.infer.config.DrawConfig`, which has the defaults."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the weights, the prompts and how to sample."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights, as RUN/phases/STAGE/weights")
    parser.add_argument("--prompt", action="append", required=True, help="may be given several times")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    for key, (kind, what) in SAMPLING.items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=kind, default=argparse.SUPPRESS, help=what)


def run(arguments: argparse.Namespace) -> None:
    """Draws the prompts.

    Raises:
        UforkError: the weights, a prompt or a value is at fault, or the picture cannot be written.
    """
    from ufork.infer.config import DrawConfig
    from ufork.report.grid import write_grid

    chosen = {key: value for key, value in vars(arguments).items() if key in SAMPLING}
    config = DrawConfig.from_mapping(chosen, origin="options")

    from ufork.infer.model import TrainedModel  # after the values are checked: it takes seconds

    images = TrainedModel.load(arguments.checkpoint).draw(arguments.prompt, config)
    write_grid(images, arguments.out)
    print(arguments.out)
