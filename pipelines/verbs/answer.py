"""Prints the answer to each question about the image, one a line."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the weights, the image and the questions."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights, as RUN/phases/STAGE/weights")
    parser.add_argument("--image", type=Path, required=True, help="PNG or JPEG")
    parser.add_argument("--question", action="append", required=True, help="may be given several times")


def run(arguments: argparse.Namespace) -> None:
    """Answers the questions.

    Raises:
        UforkError: the weights, the image or a question is at fault.
    """
    from ufork.errors import SampleError

    try:
        data = arguments.image.read_bytes()
    except OSError as error:
        raise SampleError(f"{arguments.image}: cannot be read ({error.strerror}); give a PNG or JPEG file") from None

    import numpy as np

    from ufork.infer.model import TrainedModel
    from ufork.vision.images import decode_image
    from ufork.vocabulary import Task

    model = TrainedModel.load(arguments.checkpoint)
    try:
        image = decode_image(data, size_px=model.codec.config.image_px, purpose=Task.UNDERSTANDING)
    except SampleError as error:
        raise SampleError(f"{arguments.image}: {error}") from None
    for answer in model.answer(np.stack([image] * len(arguments.question)), arguments.question):
        print(answer)
