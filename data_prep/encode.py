"""Encodes shards of images into shards of codes, so that training need not decode and encode images.

    each shard, by one of several processes  ->  images decoded in batches  ->  ImageCodec.encode
                                             ->  one shard with codes, then .work/{shard}.json
    all shards                               ->  manifest

Text, ids and truth are copied, and so are samples without an image. The manifest has the codec's digest: a folder that
was finished with the same codec from the same images is kept, and an unfinished one is resumed. Batches do not cross
shards, so codes do not depend on the number of processes.
"""

import hashlib
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data_prep.sharding.progress import Progress
from data_prep.sharding.work_folder import NAME as WORK_NAME
from ufork.config import Config, NumProcesses
from ufork.data.shards.manifest import Manifest, ShardEntry
from ufork.data.shards.sample import Sample
from ufork.data.shards.source import ShardSource
from ufork.data.shards.writer import (
    ShardWriter,
    finish_source,
    finished_source,
    start_source,
)
from ufork.errors import SampleError, ShardError
from ufork.files import named_errors, storage_errors, write_whole
from ufork.infer.device import choose_device
from ufork.processes.worker_pool import run_jobs
from ufork.vision.codec import ImageCodec
from ufork.vision.images import decode_image
from ufork.vocabulary import Task

CODEC_DETAIL = "codec"
"""Key of the manifest's details that describes the codec."""

_ENCODING_VERSION = 2
"""Version of the encoding; increased when the same codec and images give other codes."""

_BATCH_SAMPLES = 256
_CODEC, _RECIPE = "codec", "recipe.txt"

_logger = logging.getLogger(__name__)


class EncodeConfig(Config):
    """Configuration of encoding shards."""

    keep_images: bool = False
    """Whether images are kept beside their codes; training reads the codes."""
    device: str = "auto"
    """Where the codec computes: cpu, cuda, cuda:N, or auto, the first GPU that torch can use and otherwise the CPU."""
    num_workers: NumProcesses = 1
    """Number of processes; if more than 1, each uses one thread. The codes do not depend on it. On a GPU several
    processes share it, and decode images while it computes."""


def encode_shards(
    codec: ImageCodec, source_folder: Path, target_folder: Path, config: EncodeConfig | None = None
) -> Manifest:
    """Writes the samples of `source_folder` with codes in place of images into `target_folder`.

    Samples that cannot be read or decoded are skipped, logged, and counted in the manifest's `skipped`. Images per
    second are logged.

    Raises:
        ConfigError: torch cannot use `config.device`.
        ShardError: the source is missing or damaged, already holds codes, or no sample of it can be encoded.
        StorageError: the target cannot be written.
        WorkerError: a process died.
    """
    config, origin = config or EncodeConfig(), Manifest.load(source_folder)
    if CODEC_DETAIL in origin.details:
        raise ShardError(f"{source_folder}: already holds codes; give the folder of shards with the images")
    recipe = _recipe(origin, codec, config)
    finished = finished_source(target_folder, recipe)
    if finished is not None:
        _logger.info("%s: already encoded", target_folder)
        return finished
    _logger.info("%s: encoding %s", target_folder, source_folder)
    _claim(target_folder, recipe, codec)
    done = _encode_all(source_folder, target_folder, config, len(origin.shards))
    skipped = sum((Counter(shard.skipped) for shard in done), Counter[str]())
    if skipped and not any(shard.entries for shard in done):
        reasons = "".join(f"\n  {number:,}  {reason}" for reason, number in skipped.most_common())
        raise ShardError(f"{source_folder}: no sample can be encoded; all {skipped.total():,} were skipped:{reasons}")
    manifest = finish_source(
        target_folder,
        source=origin.source,
        split=origin.split,
        licence=origin.licence,
        attribution=origin.attribution,
        recipe=recipe,
        entries=[entry for shard in done for entry in shard.entries],
        skipped=dict(skipped + Counter(origin.skipped)),
        details={**origin.details, CODEC_DETAIL: _describe(codec)},
    )
    shutil.rmtree(target_folder / WORK_NAME)
    return manifest


def _recipe(origin: Manifest, codec: ImageCodec, config: EncodeConfig) -> str:
    kept = " images kept" if config.keep_images else ""
    return hashlib.sha256(f"{_ENCODING_VERSION} {origin.recipe} {codec.digest}{kept}".encode()).hexdigest()


def _describe(codec: ImageCodec) -> dict[str, object]:
    return {
        "digest": codec.digest,
        "image_px": codec.config.image_px,
        "grid": [codec.grid_rows, codec.grid_columns],
        "codes_per_position": codec.codes_per_position,
        "codebook_size": codec.codebook_size,
    }


def _claim(target: Path, recipe: str, codec: ImageCodec) -> None:
    """Clears the target, unless it was started with the same recipe."""
    work = target / WORK_NAME
    if (work / _RECIPE).exists() and (work / _RECIPE).read_text() == recipe:
        return
    start_source(target)
    with storage_errors(target):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
    codec.save(work / _CODEC)
    write_whole(work / _RECIPE, recipe)


@dataclass(frozen=True)
class _ShardDone:
    """Result of one shard of the source."""

    entries: tuple[ShardEntry, ...]
    """The shard written; empty if all samples were skipped."""
    skipped: dict[str, int]

    @classmethod
    def load(cls, target: Path, number: int) -> "_ShardDone | None":
        """Reads the result of shard `number`; None if it is not done."""
        try:
            with named_errors(path := _done_path(target, number)):
                values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return cls(tuple(map(ShardEntry.from_dict, values["entries"])), values["skipped"])


def _done_path(target: Path, number: int) -> Path:
    return target / WORK_NAME / f"{number:05d}.json"


def _encode_all(source: Path, target: Path, config: EncodeConfig, num_shards: int) -> list[_ShardDone]:
    missing = [number for number in range(num_shards) if _ShardDone.load(target, number) is None]
    device = choose_device(config.device)
    start = partial(ShardEncoder, source, target, device, config)
    progress, reached, began = Progress("encode", unit="images"), 0, time.monotonic()
    num_workers = min(config.num_workers, max(1, len(missing)))
    with closing(run_jobs(missing, start, num_workers=num_workers)) as results:
        for number, (_, num_images) in enumerate(results, start=1):
            reached += num_images
            progress.reach(reached, f"{number} of {len(missing)} shards")
    seconds = time.monotonic() - began
    _logger.info(
        "%s: %s images in %.1f s, %.1f images/s on %s", target, f"{reached:,}", seconds, reached / seconds, device
    )
    done = [_ShardDone.load(target, number) for number in range(num_shards)]
    return [shard for shard in done if shard is not None]


class ShardEncoder:
    """Encodes shards; built once per process."""

    def __init__(self, source: Path, target: Path, device: torch.device, config: EncodeConfig) -> None:
        """Loads the codec that is stored in the target until it is finished."""
        if config.num_workers > 1:
            torch.set_num_threads(1)  # other processes use the other cores
        self._target, self._config = target, config
        self._codec = ImageCodec.load(target / WORK_NAME / _CODEC, device=str(device))
        self._sources = {task: ShardSource(source, task) for task in Task}
        self._manifest = Manifest.load(source)

    def __call__(self, number: int) -> int:
        """Encodes the shard at this number in the manifest; returns the number of images encoded.

        Raises:
            ShardError: the shard is damaged.
            StorageError: the new shard cannot be written.
        """
        entry = self._manifest.shards[number]
        shard_of_task = [before.task for before in self._manifest.shards[:number]].count(entry.task)
        first = self._sources[entry.task].first_number(shard_of_task)
        skipped: Counter[str] = Counter()
        num_images = 0
        with ShardWriter(
            self._target,
            source=self._manifest.source,
            split=self._manifest.split,
            task=entry.task,
            shard_samples=entry.samples,
            first_shard=shard_of_task,
            first_key=first,
        ) as writer:
            for sample in self._samples(entry.task, range(first, first + entry.samples), skipped):
                writer.write(sample)
                num_images += sample.codes is not None
        done = _ShardDone(tuple(writer.entries), dict(skipped))
        write_whole(_done_path(self._target, number), json.dumps(asdict(done)))
        return num_images

    def _samples(self, task: Task, numbers: range, skipped: Counter[str]) -> Iterator[Sample]:
        for start in range(0, len(numbers), _BATCH_SAMPLES):
            batch = numbers[start : start + _BATCH_SAMPLES]
            yield from self._encoded(list(_decoded(self._sources[task], batch, self._codec.config.image_px, skipped)))

    def _encoded(self, batch: list[tuple[Sample, np.ndarray | None]]) -> Iterator[Sample]:
        """Yields the samples in order, with codes for those that have an image."""
        images = [image for _, image in batch if image is not None]
        codes = iter(self._codec.encode(np.stack(images)).astype(np.uint16) if images else ())
        for sample, image in batch:
            if image is None:
                yield sample
            elif self._config.keep_images:
                yield replace(sample, codes=next(codes))
            else:
                yield replace(sample, codes=next(codes), image=None, image_format=None)


def _decoded(
    source: ShardSource, numbers: range, size_px: int, skipped: Counter[str]
) -> Iterator[tuple[Sample, np.ndarray | None]]:
    """Yields samples with their decoded images; None for samples without an image."""
    for number, sample in zip(numbers, source.read(numbers), strict=True):
        try:
            yield _with_image(sample, size_px)
        except SampleError as error:
            skipped[error.reason] += 1
            _logger.warning("%s: sample %d skipped: %s", source.storage.where(""), number, error)


def _with_image(sample: Sample | SampleError, size_px: int) -> tuple[Sample, np.ndarray | None]:
    if isinstance(sample, SampleError):
        raise sample
    if sample.is_text_only:
        return sample, None
    if sample.image is None:
        raise SampleError("it has codes but no image")
    return sample, decode_image(sample.image, size_px=size_px, purpose=sample.task)
