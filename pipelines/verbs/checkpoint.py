"""What a run can go on from.

list    every checkpoint of the run's phases, with step and layout
verify  reads each to the last byte and names what is at fault; exit code 1 if any is damaged
prune   removes all but each phase's newest --keep; damaged ones do not count
export  takes one checkpoint (RUN/phases/NAME/checkpoints/step-N) and leaves its whole weights, with the tokenizers, in
        --output: to draw and answer with, or for another run
reshape takes one checkpoint and leaves it in --output as --ranks colocated ranks would have written it, to keep or to
        move in few files; no job needs it: any layout goes on from any other's checkpoint as it is
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ufork.checkpoint.folder import CheckpointFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what to do, and the run."""
    parser.add_argument("action", choices=("list", "verify", "prune", "export", "reshape"), help="as told below")
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run's folder; for export and reshape, that of one checkpoint"
    )
    parser.add_argument("--keep", type=int, default=1, metavar="N", help="of each phase, for prune")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for export and reshape")
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="for reshape (%(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Prints a line for each checkpoint.

    Raises:
        UforkError: the folder is no run's, or a checkpoint is damaged.
    """
    from ufork.errors import ConfigError

    if arguments.action in ("export", "reshape"):
        if arguments.output is None:
            raise ConfigError(f"checkpoint {arguments.action}: --output FOLDER is missing")
        if arguments.action == "export":
            _export(arguments.run, arguments.output)
        else:
            _reshape(arguments.run, arguments.output, arguments.ranks)
        print(arguments.output)
        return
    folders = _folders(arguments.run)
    if arguments.keep < 1:
        raise ConfigError(f"--keep {arguments.keep}: at least one stays; to begin anew, train with train.resume=never")
    {"list": _list, "verify": _verify, "prune": lambda each: _prune(each, arguments.keep)}[arguments.action](folders)


def _folders(run: Path) -> list["CheckpointFolder"]:
    from ufork.checkpoint.folder import CheckpointFolder
    from ufork.errors import CheckpointError

    found = [CheckpointFolder(path) for path in sorted(run.glob("phases/*/checkpoints"))]
    if not found:
        raise CheckpointError(f"{run}: no checkpoints in phases/*/checkpoints; give the folder of a run")
    return found


def _reshape(checkpoint: Path, output: Path, num_ranks: int) -> None:
    from ufork.checkpoint.reshape import reshape

    reshape(checkpoint, output, num_ranks=num_ranks)


def _export(checkpoint: Path, output: Path) -> None:
    from ufork.checkpoint.export import checkpoint_weights
    from ufork.data.text_tokenizer import TextTokenizer
    from ufork.infer.model import save_trained
    from ufork.run_folder import RunFolder
    from ufork.vision.codec import ImageCodec

    run = RunFolder(checkpoint.resolve().parents[3])
    tokenizer, codec = TextTokenizer.load(run.text_tokenizer), ImageCodec.load(run.vision_tokenizer)
    save_trained(output, *checkpoint_weights(checkpoint), tokenizer, codec)


def _list(folders: list["CheckpointFolder"]) -> None:
    from ufork.checkpoint.folder import read_state
    from ufork.errors import CheckpointError

    for folder in folders:
        for step in folder.steps():
            try:
                state = read_state(folder.at(step))
                size = sum(record.bytes for record in state.files.values())
                print(f"{folder.at(step)}  {size / 1e6:,.0f} MB  {state.layout}")
            except CheckpointError as error:
                print(f"{folder.at(step)}  damaged: {error}")


def _verify(folders: list["CheckpointFolder"]) -> None:
    from ufork.checkpoint.folder import verify
    from ufork.errors import CheckpointError

    num_damaged = 0
    for folder in folders:
        for step in folder.steps():
            try:
                verify(folder.at(step), deep=True)
                print(f"{folder.at(step)}  valid")
            except CheckpointError as error:
                num_damaged += 1
                print(f"{folder.at(step)}  damaged: {error}")
    if num_damaged:
        raise CheckpointError(f"{num_damaged} damaged; `ufork train` passes over them")


def _prune(folders: list["CheckpointFolder"], keep: int) -> None:
    for folder in folders:
        for step, fault in folder.newest_valid().passed_over.items():
            print(f"{folder.set_aside(step)}  damaged, out of the way: {fault}")
        for step in folder.prune(keep=keep):
            print(f"{folder.at(step)}  removed")
