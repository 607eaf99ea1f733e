"""Writes a trained model as a folder that Hugging Face's transformers loads.

The folder has weights, configuration, tokenizer, processor, a model card and, for the whole model, its code. The
understanding branch alone (--task understanding) is a plain Qwen2 or Qwen3 text model, which needs no code.
"""

import argparse
from pathlib import Path

from pipelines.terminal import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the run, the format and the folder to write."""
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="folder of a run, or of exported weights such as RUN/phases/PHASE/weights"
    )
    parser.add_argument("--format", choices=("hf",), default="hf", help="format to write (default: hf, transformers')")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="folder to write, empty or missing")
    parser.add_argument("--phase", metavar="NAME", help="phase of the run (default: its last one)")
    parser.add_argument(
        "--task",
        choices=("understanding", "generation"),
        help="only branch to export, with the trunk (default: all branches)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes the folder and prints its path.

    Raises:
        UforkError: there are no weights, they are damaged, or the folder cannot be written.
    """
    from ufork.hugging_face.export import export
    from ufork.vocabulary import Task

    task = Task(arguments.task) if arguments.task else None
    export(arguments.run, arguments.to, phase=arguments.phase, task=task)
    show(arguments.to)
