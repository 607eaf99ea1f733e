"""The `ufork` command: finds the verb, lets its module parse the rest, and turns errors into messages and exit codes.

    ufork VERB ... -> pipelines/verbs/VERB.py: add_arguments(parser), run(arguments)

Only the chosen verb's module is imported, and each imports what is heavy inside `run`, so that help costs nothing.
"""

import argparse
import importlib
import logging
import signal
import sys
from collections.abc import Sequence

from ufork import __version__
from ufork.errors import UforkError

VERBS = {
    "prepare": "make the shards of a recipe's sources",
    "shard": "make a collection of images and text into shards, merge or verify them",
    "tokenizer": "make the text tokenizer, fit the image tokenizer, encode shards with it",
    "plan": "estimate the layouts for so many devices, and recommend one",
    "train": "train a recipe's phases, here or as one rank of torchrun or srun",
    "submit": "train a recipe on a Slurm cluster",
    "health": "check a node of a Slurm job before it trains",
    "checkpoint": "list, verify, prune, export or reshape checkpoints",
    "status": "tell where a run is, or why it ended",
    "draw": "draw prompts with a trained model",
    "answer": "answer a question about an image with a trained model",
    "evaluate": "measure a trained model on the held-out questions and prompts",
    "doctor": "tell what this machine has, and what it lacks",
    "report": "write a run's self-contained HTML page",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0, an error's own `exit_code`, or 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    chosen = _top_parser().parse_args(argv or ["--help"])
    verb = importlib.import_module(f"pipelines.verbs.{chosen.verb}")
    parser = argparse.ArgumentParser(prog=f"ufork {chosen.verb}", description=VERBS[chosen.verb], epilog=verb.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verb.add_arguments(parser)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        verb.run(parser.parse_intermixed_args(chosen.arguments))
    except UforkError as error:
        print(f"ufork {chosen.verb}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"ufork {chosen.verb}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, VERBS))
    parser = argparse.ArgumentParser(
        prog="ufork",
        description="Trains UniFork: one model that understands and generates images.",
        epilog="verbs:\n" + "\n".join(f"  {verb:{width}}  {what}" for verb, what in VERBS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ufork {__version__}")
    parser.add_argument("verb", metavar="VERB", choices=list(VERBS), help="one of those below; `ufork VERB --help`")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
