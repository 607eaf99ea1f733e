"""Converts a collection of images and text on disk into dataset shards, or works on such shards.

Give the kind of the collection (images, captions, conversations, tars, huggingface) or an action:

report TARGET  prints how many records were kept or dropped and why, and draws report.html and contact_sheet.png again
encode SHARDS  encodes the images of shards with an image tokenizer (--tokenizer) into shards of codes (--to)
verify TARGET  checks finished shards against their manifest, sample by sample
merge TARGET   writes the manifest once all tasks of an array have finished
write TARGET   resumes unfinished shards with the values they were started with, then writes the manifest

The same command resumes after an interruption. With --task I --of N, or in a Slurm array, it does its share of the
work only, and `merge` writes the manifest afterwards.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.terminal import show
from pipelines.text_arguments import whole_number

if TYPE_CHECKING:
    from data_prep.sharding.config import ShardConfig
    from data_prep.sharding.run import Share

KINDS = ("images", "conversations", "captions", "tars", "huggingface")
ACTIONS = ("encode", "report", "verify", "merge", "write")
STEPS = ("record_index", "fingerprints", "write", "merge")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `ufork shard`."""
    kinds = (*KINDS, *ACTIONS)
    parser.add_argument(
        "kind", choices=kinds, metavar="KIND", help=f"kind of collection or action: one of {', '.join(kinds)}"
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="the collection; for an action, the folder of shards")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="configuration, such as source=pets or filters.min_side_px=128",
    )
    parser.add_argument("--to", type=Path, metavar="TARGET", help="folder to write, such as shards/pets/train")
    parser.add_argument(
        "--config", type=Path, metavar="FILE.yaml", help="file with configuration; KEY=VALUE overrides it"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="folder of the image tokenizer (for encode)")
    parser.add_argument("--task", type=whole_number, metavar="I", help="index of this task in an array, starting at 0")
    parser.add_argument("--of", type=whole_number, metavar="N", help="number of tasks in the array")
    parser.add_argument("--step", choices=STEPS, help="do only this step of the work (default: all steps)")


def run(arguments: argparse.Namespace) -> None:
    """Converts a collection, or does the action.

    Raises:
        UforkError: a value or file is at fault, or a process died.
    """
    if arguments.kind == "verify":
        _verify(arguments.path)
    elif arguments.kind == "report":
        _report(arguments.path)
    elif arguments.kind == "encode":
        _encode(arguments)
    else:
        _shard(arguments, share_of(arguments, os.environ))


def share_of(arguments: argparse.Namespace, environment: Mapping[str, str]) -> "Share | None":
    """Returns this task's share of the jobs, from the arguments or else from Slurm's array; None for all jobs.

    Raises:
        ConfigError: only one of --task and --of is given, or --task is not below --of.
    """
    from data_prep.sharding.run import Share
    from ufork.errors import ConfigError

    if (arguments.task is None) != (arguments.of is None):
        raise ConfigError("--task and --of: give both or neither")
    if arguments.task is not None:
        return Share(arguments.task, arguments.of)
    if "SLURM_ARRAY_TASK_ID" in environment:
        first, step = (
            int(environment.get(f"SLURM_ARRAY_TASK_{name}", default)) for name, default in (("MIN", 0), ("STEP", 1))
        )
        task = (int(environment["SLURM_ARRAY_TASK_ID"]) - first) // step
        return Share(task, int(environment["SLURM_ARRAY_TASK_COUNT"]))
    return None


def _verify(folder: Path) -> None:
    from data_prep.sharding.verify import verify_shards
    from pipelines.cgroups import usable_cores
    from ufork.errors import ShardError

    faults = verify_shards(folder, num_workers=usable_cores())
    if faults:
        raise ShardError("\n  ".join([f"{folder}: {len(faults)} faults", *faults]))
    show(f"{folder}: verified, matches its manifest")


def _report(folder: Path) -> None:
    from data_prep.report.drop_report import as_text, load_report
    from data_prep.sharding.merge import report_on

    report_on(folder)
    show(as_text(*load_report(folder)))


def _encode(arguments: argparse.Namespace) -> None:
    from data_prep.encode import EncodeConfig, encode_shards
    from ufork.config import merge_overrides
    from ufork.errors import ConfigError
    from ufork.vision.codec import ImageCodec

    if arguments.to is None or arguments.tokenizer is None:
        raise ConfigError("encode needs --to (folder to write) and --tokenizer (folder of the image tokenizer)")
    config = EncodeConfig.from_mapping(merge_overrides({}, arguments.overrides), origin="ufork shard encode")
    encode_shards(ImageCodec.load(arguments.tokenizer), arguments.path, arguments.to, config)


def _shard(arguments: argparse.Namespace, share: "Share | None") -> None:
    from functools import partial

    from data_prep.inputs.config import open_input
    from data_prep.sharding.merge import finish_shards
    from data_prep.sharding.run import WHOLE, fingerprint_records, make_record_index, shard, write_shards

    config, target = _config_of(arguments)
    opener = partial(open_input, config.input)
    step = "merge" if arguments.kind == "merge" else arguments.step
    if step == "merge":
        finish_shards(config, target)
    elif step is None and share is None:
        shard(config, target, opener)
    else:
        share = share or WHOLE
        make_record_index(config, target, opener)
        if step in ("fingerprints", None):
            fingerprint_records(config, target, opener, share)
        if step in ("write", None):
            write_shards(config, target, opener, share)


def _config_of(arguments: argparse.Namespace) -> tuple["ShardConfig", Path]:
    """Returns config and target: stored with unfinished shards for an action, else from the arguments."""
    from data_prep.sharding.config import ShardConfig
    from data_prep.sharding.work_folder import WorkFolder
    from ufork.config import merge_overrides, read_mapping
    from ufork.errors import ConfigError

    if arguments.kind in ACTIONS:
        return ShardConfig.from_yaml(WorkFolder(arguments.path).config, arguments.overrides), arguments.path
    if arguments.to is None:
        raise ConfigError("--to is missing: give the folder to write, such as shards/pets/train")
    values: dict[str, Any] = read_mapping(arguments.config) if arguments.config else {}
    source = {"kind": arguments.kind, "path": os.path.abspath(arguments.path)}
    values = {**values, "input": {**values.get("input", {}), **source}}
    origin = str(arguments.config or "ufork shard")
    config = ShardConfig.from_mapping(merge_overrides(values, arguments.overrides), origin=origin)
    _refuse_inside(config.input.path, arguments.to)
    return config, arguments.to


def _refuse_inside(collection: Path, target: Path) -> None:
    """Refuses to write into the collection: a later command would read the shards as part of it."""
    from ufork.errors import ConfigError

    folder, target_folder = collection if collection.is_dir() else collection.parent, target.resolve()
    if target_folder == folder.resolve() or (collection.is_dir() and folder.resolve() in target_folder.parents):
        raise ConfigError(f"--to {target}: is inside the collection {folder}; give a folder outside of it")
