"""Prints the answer to each question about the image, one per line."""

import argparse
from pathlib import Path

from pipelines.device_arguments import add_model_arguments, load_model, memory_errors
from pipelines.terminal import printable, show

MAX_IMAGE_BYTES = 256 * 2**20
"""Largest image file that is read."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the weights, the image and the questions."""
    add_model_arguments(parser)
    parser.add_argument("--image", type=Path, required=True, help="PNG, JPEG or WebP file")
    parser.add_argument("--question", action="append", required=True, help="question; may be given several times")


def run(arguments: argparse.Namespace) -> None:
    """Answers the questions.

    Raises:
        UforkError: the weights, the image, a question or the device is at fault.
    """
    from ufork.errors import SampleError
    from ufork.files import read_bounded

    try:
        data = read_bounded(arguments.image, MAX_IMAGE_BYTES)
    except OSError as error:
        raise SampleError(
            f"{arguments.image}: cannot be read ({error.strerror}); give a PNG, JPEG or WebP file"
        ) from None

    import numpy as np

    from ufork.vision.images import decode_image
    from ufork.vocabulary import Task

    with memory_errors("Ask fewer questions at a time"):
        model = load_model(arguments.checkpoint, arguments)
        try:
            image = decode_image(data, size_px=model.image_px, purpose=Task.UNDERSTANDING)
        except SampleError as error:
            raise SampleError(f"{arguments.image}: {error}") from None
        answers = model.answer(np.stack([image] * len(arguments.question)), arguments.question)
    for answer in answers:
        show(printable(answer))
