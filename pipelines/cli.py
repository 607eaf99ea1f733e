"""The `ufork` command: finds the verb, lets its module parse the rest, and turns errors into messages and exit codes.

    ufork VERB ... -> pipelines/verbs/VERB.py: add_arguments(parser), run(arguments)
                   -> an error: its message on standard error, a failure file, its exit code

Only the chosen verb's module is imported, and each imports heavy packages inside `run`, so that help is quick.
"""

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, ModuleType

from pipelines.launch.stop_signals import handled
from pipelines.terminal import LINE_ENDS, discard_unwritable, log_to_terminal, make_streams_safe, printable
from pipelines.text_arguments import require_text
from ufork import __version__
from ufork.errors import ConfigError, StoppedError, StorageError, UforkError, system_error

FAILURE_FILE = "UFORK_FAILURE_FILE"
"""Environment variable: where any verb records the error that ends it. Batch scripts set it for each rank."""
EXIT_CODE_OF_PYTHON = 1
"""Exit code of a program that ends with a traceback."""
VERBS = {
    "demo": "run a recipe from its data to its report, fitted to this machine",
    "verify": "run a recipe and compare its scores with the recorded ones",
    "prepare": "make the shards of a recipe's demo sources",
    "shard": "convert a collection of images and text to shards; merge, verify or encode shards",
    "tokenizer": "train the text tokenizer, fit the image tokenizer, encode shards with it",
    "convert": "make ufork's weights from a Qwen model, UniFork's release or VILA-U's image tokenizer",
    "plan": "estimate step time and memory of the layouts for a number of devices, and recommend one",
    "train": "train a recipe's phases, on this machine or as one rank of torchrun or srun",
    "submit": "train a recipe on a Slurm cluster",
    "health": "check a node of a Slurm job before it trains",
    "checkpoint": "list, verify, prune, export or reshape checkpoints",
    "export": "write a trained model as a folder that Hugging Face's transformers loads",
    "status": "show a run's state and progress, or why it ended",
    "draw": "draw images for text prompts with a trained model",
    "answer": "answer a question about an image with a trained model",
    "serve": "serve a page to draw and to ask about images in a browser, and its JSON API",
    "evaluate": "measure a trained model on held-out questions and prompts",
    "align": "measure how image and text features agree at every layer of a trained model",
    "ablate": "train and evaluate the arms of a suite with several seeds, and compare their scores",
    "doctor": "show what this machine has and what it lacks",
    "report": "write a run's report as one self-contained HTML page",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0, an error's own, 130 when interrupted, 141 when output is cut off."""
    if argv is None:
        _use_utf8()
        _shield_children()
        make_streams_safe()
        argv = sys.argv[1:]
    name = "ufork"
    try:
        chosen = _top_parser().parse_args(argv or ["--help"])
        name = f"ufork {chosen.verb}"
        return _run_verb(chosen.verb, chosen.arguments)
    except KeyboardInterrupt:
        _tell(f"{name}: interrupted")
        return 128 + signal.SIGINT
    finally:
        discard_unwritable(sys.stderr)


class _StopSignal(BaseException):
    """A signal that asks to stop, in a verb that does not handle it: unwinds, so that drafts are removed."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _StopSignal(signal.Signals(number).name)


def _run_verb(name: str, argv: Sequence[str]) -> int:
    verb = importlib.import_module(f"pipelines.verbs.{name}")
    parser = argparse.ArgumentParser(prog=f"ufork {name}", description=VERBS[name], epilog=verb.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verb.add_arguments(parser)
    log_to_terminal()
    try:
        require_text(argv)
    except ConfigError as error:
        parser.error(str(error))
    arguments = parser.parse_intermixed_args(argv)
    failure_file = _failure_file(verb, arguments)
    try:
        _require_folder()
        with handled(_stop):
            verb.run(arguments)
        sys.stdout.flush()
    except (Exception, _StopSignal) as error:
        fault = discard_unwritable(sys.stdout)
        if fault and isinstance(error, OSError):
            if isinstance(fault, BrokenPipeError):
                return 128 + signal.SIGPIPE
            error = StorageError(f"standard output: cannot be written ({fault.strerror}); free space, or redirect it")
        known = _known(error)
        if known is None:
            _record(failure_file, error, EXIT_CODE_OF_PYTHON)
            raise
        _tell(f"ufork {name}: {printable(str(known), keep=LINE_ENDS)}")
        _record(failure_file, known, known.exit_code)
        return known.exit_code
    return 0


def _known(error: BaseException) -> UforkError | None:
    """Returns `error` as one that users understand; None for a bug, which keeps its traceback."""
    if isinstance(error, _StopSignal):
        return StoppedError(f"{error}: stopped; run the same command again")
    return error if isinstance(error, UforkError) else system_error(error)


def _use_utf8() -> None:
    """Starts this program again in Python's UTF-8 mode where the locale has another encoding.

    Names of files and text in shards and recipes are UTF-8 wherever they were made; Python decides only when it starts.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"  # for the processes that it starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _shield_children() -> None:
    """Keeps child processes from importing the current folder's modules, such as a user's random.py, as `ufork` itself.

    `python -m pipelines.cli` imports from the current folder, and so do its children.
    """
    with contextlib.suppress(FileNotFoundError):
        if os.getcwd() not in sys.path:
            os.environ["PYTHONSAFEPATH"] = "1"


def _require_folder() -> None:
    """Checks that the current folder has not been removed, without which libraries end programs in their own words."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise StorageError("the current folder has been removed; change to another one (cd)") from None


def _tell(message: str) -> None:
    with contextlib.suppress(OSError):  # a full disk, or a terminal that is gone: the exit code remains
        print(message, file=sys.stderr)


def _failure_file(verb: ModuleType, arguments: argparse.Namespace) -> Path | None:
    """Returns where an error is recorded, without the record of an earlier run; None for verbs that record nothing."""
    path = Path(os.environ[FAILURE_FILE]) if os.environ.get(FAILURE_FILE) else None
    if path is None and hasattr(verb, "failure_folder"):
        folder = verb.failure_folder(arguments)
        path = folder / f"{_rank(os.environ)}.json" if folder else None
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return path


def _rank(environment: Mapping[str, str]) -> int:
    """Returns this process's rank under torchrun or srun, otherwise 0."""
    rank = environment.get("RANK") or (environment.get("SLURM_PROCID") if "SLURM_STEP_ID" in environment else None)
    return int(rank) if rank and rank.isdecimal() else 0


def _record(path: Path | None, error: BaseException, exit_code: int) -> None:
    if path is None:
        return
    from pipelines.status.failure_record import record_of, write_record

    try:
        write_record(path, record_of(error, exit_code=exit_code, rank=_rank(os.environ)))
    except StorageError as unwritten:
        _tell(f"ufork: the failure file is not written: {unwritten}")


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, VERBS))
    parser = argparse.ArgumentParser(
        prog="ufork",
        description="Trains UniFork: one model that understands and generates images.",
        epilog="verbs:\n" + "\n".join(f"  {verb:{width}}  {what}" for verb, what in VERBS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ufork {__version__}")
    parser.add_argument(
        "verb", metavar="VERB", choices=list(VERBS), help="one of the verbs below; `ufork VERB --help` describes it"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
