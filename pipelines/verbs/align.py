"""Measures how image and text features agree at every layer of trained models.

Writes DIR/alignment.json and one picture per measure: mutual nearest neighbours, debiased CKA and a linear probe, each
beside its value for permuted pairs. Several checkpoints are compared on the same pairs, a panel each.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.device_arguments import add_device_arguments, load_model, memory_errors
from pipelines.terminal import show

if TYPE_CHECKING:
    from ufork.analysis.config import AlignmentConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the models, the pairs and how they are compared."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        required=True,
        help="folder of exported weights, such as RUN/phases/PHASE/weights; may be given several times",
    )
    parser.add_argument(
        "--name", action="append", help="what figures call a model, one for each checkpoint (default: its folder)"
    )
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        help="source folder of the pairs, such as RUN/codes/scenes/heldout; may be given several times",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--text-model", type=Path, help="folder of a transformers model to take text features from")
    parser.add_argument(
        "--pairs", type=int, metavar="N", help="number of image-text pairs; the same as the value num_pairs=N"
    )
    parser.add_argument("--tasks", help="tasks whose paths are followed, separated by commas (default: both)")
    parser.add_argument(
        "values", nargs="*", metavar="KEY=VALUE", help="values of ufork/analysis/config.py, such as num_neighbours=10"
    )
    add_device_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measures the models one after the other.

    Raises:
        UforkError: weights, data, a value or the device is at fault, or a file cannot be written.
    """
    import time

    from ufork.analysis.alignment_figure import alignment_figure
    from ufork.analysis.alignment_record import PICTURES, RECORD, AlignmentRecord
    from ufork.analysis.figure import png_of
    from ufork.analysis.measure_alignment import measure_alignment
    from ufork.analysis.pairs import read_pairs
    from ufork.analysis.text_model import external_text_features
    from ufork.errors import ConfigError
    from ufork.files import write_whole

    began, config = time.monotonic(), _config(arguments)
    names = arguments.name or [str(path) for path in arguments.checkpoint]
    if len(names) != len(arguments.checkpoint):
        raise ConfigError(f"--name: {len(names)} names for {len(arguments.checkpoint)} checkpoints; give one for each")
    models, external_ND = [], None
    for name, checkpoint in zip(names, arguments.checkpoint, strict=True):
        with memory_errors("Give --pairs a smaller number"):
            model = load_model(checkpoint, arguments)
            pairs = read_pairs(model.codec, arguments.data, num_pairs=config.num_pairs, seed=config.seed)
            if arguments.text_model and external_ND is None:
                texts = [pair.text for pair in pairs]
                layer = -1 if config.text_layer is None else config.text_layer
                external_ND = external_text_features(arguments.text_model, texts, layer=layer, device=model.device)
            models.append(measure_alignment(model, pairs, config, name=name, external_ND=external_ND))
    from ufork.redaction import redacted

    record = AlignmentRecord(
        data=[redacted(folder) for folder in arguments.data],
        text=str(arguments.text_model or "own"),
        settings=config.model_dump(mode="json"),
        seconds=time.monotonic() - began,
        num_pairs=config.num_pairs,
        models=models,
    )
    record.save(arguments.out / RECORD)
    for measure, picture in PICTURES.items():
        write_whole(arguments.out / picture, png_of(alignment_figure(record, measure)))
    show(record.summary())


def _config(arguments: argparse.Namespace) -> "AlignmentConfig":
    from ufork.analysis.config import AlignmentConfig
    from ufork.config import merge_overrides

    given: dict[str, Any] = {} if arguments.pairs is None else {"num_pairs": arguments.pairs}
    if arguments.tasks is not None:
        given["tasks"] = [task.strip() for task in arguments.tasks.split(",") if task.strip()]
    return AlignmentConfig.from_mapping(merge_overrides(given, arguments.values), origin="command line")
