"""Lists, checks, removes and converts checkpoints.

list     prints every checkpoint of the run's phases, with its size and layout
verify   reads every byte of the checkpoints and names damaged files; the exit code is 1 if there is one
prune    removes all but the newest --keep valid checkpoints of each phase
export   writes the full weights and the tokenizers of one checkpoint (RUN/phases/NAME/checkpoints/step-N) to --output,
         for `ufork draw` and `ufork answer`
reshape  writes one checkpoint to --output in the files of --ranks colocated ranks, for archiving or copying; training
         does not need this, since any layout resumes from the files of any other
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.terminal import show
from pipelines.text_arguments import whole_number

if TYPE_CHECKING:
    from ufork.checkpoint.folder import CheckpointFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the action, the run and the options of single actions."""
    actions = ("list", "verify", "prune", "export", "reshape")
    parser.add_argument("action", choices=actions, help="action, as described below")
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="folder of a run; for export and reshape, folder of one checkpoint"
    )
    parser.add_argument(
        "--keep",
        type=whole_number,
        default=1,
        metavar="N",
        help="number of checkpoints of each phase that prune keeps (%(default)s)",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder that export and reshape write")
    parser.add_argument(
        "--ranks",
        type=whole_number,
        default=1,
        metavar="N",
        help="number of ranks that reshape writes for (%(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints a line for each checkpoint.

    Raises:
        UforkError: the folder is not a run's, or a checkpoint is damaged.
    """
    if arguments.action in ("export", "reshape"):
        _convert(arguments)
        return
    folders = _folders(arguments.run)
    if arguments.action == "list":
        _list(folders)
    elif arguments.action == "verify":
        _verify(folders)
    else:
        _prune(folders, arguments.keep)


def _folders(run: Path) -> list["CheckpointFolder"]:
    from ufork.checkpoint.folder import CheckpointFolder
    from ufork.errors import CheckpointError
    from ufork.run_folder import RunFolder

    found = [CheckpointFolder(phase.checkpoints) for phase in RunFolder(run).phases() if phase.checkpoints.is_dir()]
    if not found:
        raise CheckpointError(f"{run}: no checkpoints in phases/*/checkpoints; give the folder of a run")
    return found


def _convert(arguments: argparse.Namespace) -> None:
    from ufork.checkpoint.reshape import reshape
    from ufork.errors import ConfigError

    if arguments.output is None:
        raise ConfigError(f"checkpoint {arguments.action}: --output FOLDER is missing")
    if arguments.action == "export":
        _export(arguments.run, arguments.output)
    else:
        reshape(arguments.run, arguments.output, num_ranks=arguments.ranks)
    show(arguments.output)


def _export(checkpoint: Path, output: Path) -> None:
    from ufork.checkpoint.export import checkpoint_weights
    from ufork.config import read_mapping
    from ufork.data.text_tokenizer import TextTokenizer
    from ufork.files import require_empty
    from ufork.infer.config import DrawConfig
    from ufork.infer.model import save_trained
    from ufork.run_folder import RunFolder
    from ufork.vision.codec import ImageCodec

    run = RunFolder.of_checkpoint(checkpoint)
    require_empty(output)
    weights, config = checkpoint_weights(checkpoint, run)
    tokenizer, codec = TextTokenizer.load(run.text_tokenizer), ImageCodec.load(run.vision_tokenizer)
    evaluate = read_mapping(run.config).get("evaluate", {}) if run.config.exists() else {}
    recorded = evaluate.get("draw", {}) if isinstance(evaluate, dict) else evaluate
    draw = DrawConfig.from_mapping(recorded, origin=f"{run.config}, evaluate.draw")
    save_trained(output, weights, config, tokenizer, codec, draw)


def _list(folders: list["CheckpointFolder"]) -> None:
    from ufork.checkpoint.state import read_state
    from ufork.errors import CheckpointError

    for path in _all(folders):
        try:
            state = read_state(path)
            size = sum(record.bytes for record in state.files.values())
            show(f"{path}  {size / 1e6:,.0f} MB  {state.run_metadata.layout}")
        except CheckpointError as error:
            show(f"{path}  damaged: {error}")


def _verify(folders: list["CheckpointFolder"]) -> None:
    from ufork.checkpoint.state import verify
    from ufork.errors import CheckpointError

    num_damaged = 0
    for path in _all(folders):
        try:
            verify(path, deep=True)
            show(f"{path}  valid")
        except CheckpointError as error:
            num_damaged += 1
            show(f"{path}  damaged: {error}")
    if num_damaged:
        raise CheckpointError(f"{num_damaged} damaged; `ufork train` skips them and resumes from the newest valid one")


def _prune(folders: list["CheckpointFolder"], keep: int) -> None:
    from ufork.errors import ConfigError

    if keep < 1:
        raise ConfigError(f"--keep {keep}: expected at least 1; to start over, train with train.resume=never")
    for folder in folders:
        for step, fault in folder.newest_valid().damaged.items():
            show(f"{folder.set_aside(step)}  damaged, renamed: {fault}")
        for step in folder.prune(keep=keep):
            show(f"{folder.at(step)}  removed")


def _all(folders: list["CheckpointFolder"]) -> Iterator[Path]:
    return (folder.at(step) for folder in folders for step in folder.steps())
