"""Makes a collection on disk into shards, and goes on where it was stopped.

The first word is the kind of what is read, or one of these:

report TARGET  tells what was kept, and draws the page and the contact sheet again
encode SHARDS  encodes their images with an image tokenizer (--tokenizer FOLDER) into shards of codes (--to FOLDER)
verify TARGET  holds finished shards against their manifest, sample by sample
merge TARGET   writes the manifest when all tasks of an array are done
write TARGET   does what is left of shards that were begun, with the same values, and merges them

As one of several tasks (--task I --of N, or in a Slurm array) it does its share, and leaves the manifest to `merge`.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_prep.sharding.config import ShardConfig
    from data_prep.sharding.run import Share

KINDS = ("images", "conversations", "captions", "tars", "huggingface")
ACTIONS = ("encode", "report", "verify", "merge", "write")
PHASES = ("record_index", "fingerprints", "write", "merge")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what is read, where shards go, and which share of the work is done."""
    kinds = (*KINDS, *ACTIONS)
    parser.add_argument("kind", choices=kinds, metavar="KIND", help=f"one of {', '.join(kinds)}")
    parser.add_argument("path", metavar="INPUT", type=Path, help="what is read; for the actions below, the TARGET")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as source=pets or filters.min_side_px=128")
    parser.add_argument("--to", type=Path, metavar="TARGET", help="folder of the shards, as shards/pets/train")
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="values, as those of KEY=VALUE")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="an image tokenizer's, for `encode`")
    parser.add_argument("--task", type=int, metavar="I", help="this task of an array, from 0")
    parser.add_argument("--of", type=int, metavar="N", help="tasks of the array")
    parser.add_argument("--phase", choices=PHASES, help="do this part alone")


def run(arguments: argparse.Namespace) -> None:
    """Makes, merges or verifies shards.

    Raises:
        UforkError: a value or file is at fault, a process died, or a signal came.
    """
    from pipelines.launch.stop_signals import handled

    with handled(_stop):
        if arguments.kind == "verify":
            _verify(arguments.path)
        elif arguments.kind == "report":
            _report(arguments.path)
        elif arguments.kind == "encode":
            _encode(arguments)
        else:
            _shard(arguments, share_of(arguments, os.environ))


def share_of(arguments: argparse.Namespace, environment: Mapping[str, str]) -> "Share | None":
    """This task's share of the jobs, as the arguments or else Slurm's array say; None for all of them.

    Raises:
        ConfigError: only one of --task and --of was given, or they do not fit.
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


def _stop(number: int, frame: object) -> None:
    import signal

    from ufork.errors import StoppedError

    raise StoppedError(f"{signal.Signals(number).name}: stopped; the same command goes on from what is done")


def _verify(folder: Path) -> None:
    from data_prep.sharding.verify import verify_shards
    from ufork.errors import ShardError

    faults = verify_shards(folder, num_workers=len(os.sched_getaffinity(0)))
    if faults:
        raise ShardError("\n  ".join([f"{folder}: {len(faults)} faults", *faults]))
    print(f"{folder}: as its manifest says")


def _report(folder: Path) -> None:
    from data_prep.report.drop_report import as_text, load_report
    from data_prep.sharding.merge import report_on

    report_on(folder)
    print(as_text(*load_report(folder)))


def _encode(arguments: argparse.Namespace) -> None:
    from data_prep.encode import EncodeConfig, encode_shards
    from ufork.config import merge_overrides
    from ufork.errors import ConfigError
    from ufork.vision.codec import ImageCodec

    if arguments.to is None or arguments.tokenizer is None:
        raise ConfigError("--to, --tokenizer: name the folder that the codes go to, and that of the image tokenizer")
    config = EncodeConfig.from_mapping(merge_overrides({}, arguments.overrides), origin="ufork shard encode")
    encode_shards(ImageCodec.load(arguments.tokenizer), arguments.path, arguments.to, config)


def _shard(arguments: argparse.Namespace, share: "Share | None") -> None:
    from functools import partial

    from data_prep.inputs.config import open_input
    from data_prep.sharding.merge import merge_shards, report_on
    from data_prep.sharding.run import WHOLE, fingerprint_records, make_record_index, shard, write_shards

    config, target = _config_of(arguments)
    opener = partial(open_input, config.input)
    phase = "merge" if arguments.kind == "merge" else arguments.phase
    if phase == "merge":
        merge_shards(config, target)
        report_on(target)
    elif phase is None and share is None:
        shard(config, target, opener)
    else:
        share = share or WHOLE
        make_record_index(config, target, opener)
        if phase in ("fingerprints", None):
            fingerprint_records(config, target, opener, share)
        if phase in ("write", None):
            write_shards(config, target, opener, share)


def _config_of(arguments: argparse.Namespace) -> tuple["ShardConfig", Path]:
    """The config and the target: of shards that were begun, or as the arguments say."""
    from data_prep.sharding.config import ShardConfig
    from data_prep.sharding.work_folder import WorkFolder
    from ufork.config import merge_overrides, read_mapping
    from ufork.errors import ConfigError

    if arguments.kind in ACTIONS:
        return ShardConfig.from_yaml(WorkFolder(arguments.path).config, arguments.overrides), arguments.path
    if arguments.to is None:
        raise ConfigError("--to: name the folder that the shards go to, as shards/pets/train")
    values: dict[str, Any] = read_mapping(arguments.config) if arguments.config else {}
    place = {"kind": arguments.kind, "path": os.path.abspath(arguments.path)}
    values = {**values, "input": {**values.get("input", {}), **place}}
    origin = str(arguments.config or "ufork shard")
    return ShardConfig.from_mapping(merge_overrides(values, arguments.overrides), origin=origin), arguments.to
