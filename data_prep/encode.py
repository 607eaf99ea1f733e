"""Shards of images to shards of codes, so that training never decodes an image.

    source folder with images  ->  decode, in batches  ->  ImageCodec.encode  ->  source folder with codes

Text, ids and truth stay as they are. The manifest names the codec by its digest: a folder that was finished with the
same codec from the same images is left as it is.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from data_prep.writer import ShardWriter, finish_source, finished_source, start_source
from ufork.data.manifest import Manifest
from ufork.data.sample import Sample
from ufork.data.shards import ShardSource
from ufork.errors import SampleError, ShardError
from ufork.vision.codec import ImageCodec
from ufork.vision.images import decode_image
from ufork.vocabulary import Task

CODEC_DETAIL = "codec"
"""Key of the manifest's details that describes what made the codes."""

_MAKING = 1
"""Goes up whenever the same codec and images come to give other codes."""

_BATCH_SAMPLES = 256

_logger = logging.getLogger(__name__)


def encode_shards(codec: ImageCodec, source_folder: Path, target_folder: Path) -> Manifest:
    """Writes the samples of `source_folder` with codes in place of images into `target_folder`.

    Samples that cannot be read or decoded are left out, counted in the manifest's `skipped` and logged.

    Raises:
        ShardError: the source is missing or damaged, or holds codes already.
        StorageError: the target cannot be written.
    """
    origin = Manifest.load(source_folder)
    if CODEC_DETAIL in origin.details:
        raise ShardError(f"{source_folder}: holds codes already; give the folder of the images they were made from")
    recipe = hashlib.sha256(f"{_MAKING} {origin.recipe} {codec.digest}".encode()).hexdigest()
    finished = finished_source(target_folder, recipe)
    if finished is not None:
        _logger.info("%s: encoded before, kept", target_folder)
        return finished
    _logger.info("%s: encoding %s", target_folder, source_folder)
    start_source(target_folder)
    skipped: Counter[str] = Counter()
    entries = []
    for task in Task:
        shard_samples = max((entry.samples for entry in origin.shards if entry.task == task), default=1)
        with ShardWriter(
            target_folder, source=origin.source, split=origin.split, task=task, shard_samples=shard_samples
        ) as writer:
            for sample in _encoded(codec, ShardSource(source_folder, task), skipped):
                writer.write(sample)
        entries += writer.entries
    return finish_source(
        target_folder,
        source=origin.source,
        split=origin.split,
        licence=origin.licence,
        attribution=origin.attribution,
        recipe=recipe,
        entries=entries,
        skipped=dict(Counter(origin.skipped) + skipped),
        details={**origin.details, CODEC_DETAIL: _describe(codec)},
    )


def _describe(codec: ImageCodec) -> dict[str, object]:
    return {
        "digest": codec.digest,
        "image_px": codec.config.image_px,
        "grid": [codec.grid_rows, codec.grid_columns],
        "codes_per_position": codec.codes_per_position,
        "codebook_size": codec.codebook_size,
    }


def _encoded(codec: ImageCodec, source: ShardSource, skipped: Counter[str]) -> Iterator[Sample]:
    """The source's samples in order, with codes in place of images."""
    decoded = _decoded(source, codec.config.image_px, skipped)
    while batch := list(islice(decoded, _BATCH_SAMPLES)):
        codes = codec.encode(np.stack([image for _, image in batch])).astype(np.uint16)
        for (sample, _), codes_of_sample in zip(batch, codes, strict=True):
            yield replace(sample, image=None, image_format=None, codes=codes_of_sample)


def _decoded(source: ShardSource, size_px: int, skipped: Counter[str]) -> Iterator[tuple[Sample, np.ndarray]]:
    for number in range(len(source)):
        try:
            sample = source[number]
            if sample.image is None:
                raise SampleError("has codes in place of an image")
            image = decode_image(sample.image, size_px=size_px, purpose=sample.task)
        except SampleError as error:
            skipped["image cannot be decoded"] += 1
            _logger.warning("%s: sample %d left out: %s", source.storage.where(""), number, error)
            continue
        yield sample, image
