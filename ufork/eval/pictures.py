"""Pictures of an evaluation: a sample's image as an array, and the examples of the report as PNG files."""

import hashlib
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ufork.data.shards.sample import Sample
from ufork.errors import SampleError
from ufork.eval.benchmark import Case, Output, Question
from ufork.eval.record import CaseScore, Example
from ufork.files import make_folder, whole_file
from ufork.vision.images import decode_image, decode_whole
from ufork.vocabulary import Task

logger = logging.getLogger(__name__)


def image_bytes(sample: Sample) -> bytes:
    """Returns the sample's undecoded image.

    Raises:
        SampleError: the sample has none.
    """
    if sample.image is None:
        raise SampleError(f"{sample.id}: has no image; evaluation needs the shards with images, not those with codes")
    return sample.image


def read_picture(sample: Sample, *, size_px: int | None = None) -> NDArray[np.uint8]:
    """Decodes the sample's image, [height, width, 3]; with `size_px` its middle square, [size_px, size_px, 3].

    Raises:
        SampleError: the sample has no image, or it cannot be decoded.
    """
    data = image_bytes(sample)
    try:
        return decode_whole(data) if size_px is None else decode_image(data, size_px=size_px, purpose=Task.GENERATION)
    except SampleError as error:
        raise SampleError(f"{sample.id}: {error}") from None


def write_example(
    case: Case, output: Output, score: CaseScore, *, benchmark: str, folder: Path, size_px: int
) -> Example:
    """Writes the pictures of a question or prompt into FOLDER/BENCHMARK and returns the example that names them.

    Raises:
        StorageError: a file cannot be written.
    """
    stem = f"{benchmark}/{hashlib.blake2b(case.id.encode(errors='surrogatepass'), digest_size=8).hexdigest()}"
    shared = dict(task=case.task, group=case.group, text=case.request.text, note=score.note, right=score.right)
    if isinstance(case.request, Question):
        picture = decode_image(case.request.image, size_px=size_px, purpose=Task.UNDERSTANDING)
        write_picture(picture, folder / f"{stem}-question.png")
        return Example(picture=f"{stem}-question.png", answer=str(output), expected=score.expected, **shared)
    write_picture(np.asarray(output), folder / f"{stem}-drawing.png")
    reference = None
    if case.reference is not None:
        try:
            real = decode_image(case.reference, size_px=size_px, purpose=Task.GENERATION)
        except SampleError as error:
            logger.warning("%s: no reference picture: %s", case.id, error)
        else:
            reference = f"{stem}-reference.png"
            write_picture(real, folder / reference)
    return Example(picture=f"{stem}-drawing.png", reference=reference, **shared)


def write_picture(image_HW3: NDArray[np.uint8], path: Path) -> None:
    """Writes a PNG file; its folder is made.

    Raises:
        StorageError: the file cannot be written.
    """
    make_folder(path.parent)
    with whole_file(path) as file:
        Image.fromarray(image_HW3).save(file, "PNG")
