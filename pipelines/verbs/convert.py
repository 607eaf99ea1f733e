"""Makes folders of ufork's weights from models in other formats.

qwen    DIR is a dense Qwen2, Qwen2.5 or Qwen3 model as transformers saves it; FOLDER is what a run may start from
        (model.start). Values: trunk_layers, understanding_layers, generation_layers, rq_head.num_blocks, seed, ...
        (ufork/convert/config.py)
unifork DIR is a checkpoint of UniFork's authors (or a DeepSpeed folder global_step* of one), with the config of its
        image tokenizer in vision_tower; FOLDER is what a run may start from, and what `ufork draw` and `ufork answer`
        load. Value: image_px
vila-u  DIR is VILA-U's image tokenizer (its folder vision_tower); FOLDER is one that a recipe names as vision.folder.
        Value: image_px
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FORMATS = ("qwen", "unifork", "vila-u")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the format, both folders and values."""
    parser.add_argument("format", choices=FORMATS, help="format of DIR, as described below")
    parser.add_argument("source", type=Path, metavar="DIR", help="folder of the model")
    parser.add_argument("values", nargs="*", metavar="KEY=VALUE", help="what the model is made into")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="folder to write")


def run(arguments: argparse.Namespace) -> None:
    """Converts the model, and prints its size and, for a whole model, the values of a recipe that starts from it.

    Raises:
        UforkError: the model cannot be converted, or the folder cannot be written.
    """
    from ufork.convert import qwen, unifork, vila_u
    from ufork.model.weights import WeightsConfig
    from ufork.strict_yaml import dump_yaml

    converters: dict[str, Callable[[Path, Path, Sequence[str]], Any]] = {
        "qwen": qwen.convert,
        "unifork": unifork.convert,
        "vila-u": vila_u.convert,
    }
    started = time.perf_counter()
    converted = converters[arguments.format](arguments.source, arguments.to, arguments.values)
    gigabytes, seconds = converted.num_bytes / 1e9, time.perf_counter() - started
    print(
        f"{arguments.to}: {converted.num_parameters / 1e6:,.1f}M parameters, {gigabytes:,.2f} GB in"
        f" {seconds:.1f} s ({gigabytes / seconds:.2f} GB/s)"
    )
    if isinstance(converted.config, WeightsConfig):
        values = converted.config.model.model_dump(mode="json", exclude_defaults=True)
        section = dump_yaml({"model": {"start": str(arguments.to), **values}})
        print(f"a recipe that starts from it has\n{section}", end="")
