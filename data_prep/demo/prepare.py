"""Makes the shards of the synthetic sources of a recipe.

    PrepareConfig, seed  ->  each source and split that is not finished  ->  samples in order, by several processes
                         ->  {folder}/{source}/{split}/*.tar + index + manifest.json, {folder}/ATTRIBUTION.md

The bytes depend on config and seed alone, not on the number of processes: samples are made independently, and one
process writes them in order. A source that was finished from the same recipe is kept.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import lru_cache, partial
from pathlib import Path

from pydantic import PositiveInt

from data_prep.demo.emoji import EmojiConfig, EmojiSource
from data_prep.demo.scene_grammar import ScenesConfig
from data_prep.demo.scenes import SceneSource
from data_prep.demo.source import SPLITS, Source
from data_prep.inputs.skipped_input import SkippedInput
from ufork.config import Config, NumProcesses
from ufork.data.shards.manifest import Manifest
from ufork.data.shards.sample import Sample
from ufork.data.shards.writer import ShardWriter, finish_source, finished_source, start_source, write_attribution
from ufork.processes.worker_pool import run_jobs_in_order
from ufork.vocabulary import Task

_CHUNK_SAMPLES = 250
_FEW_CHUNKS = 8
"""Up to this many chunks are made in this process, since starting workers would take longer."""

_logger = logging.getLogger(__name__)


class PrepareConfig(Config):
    """The synthetic sources, and the size of their shards."""

    scenes: ScenesConfig | None = ScenesConfig()
    """Compositions of sprites; null makes none."""
    emoji: EmojiConfig | None = EmojiConfig()
    """Single emoji; null makes none."""
    shard_samples: PositiveInt = 4096
    """Samples per tar; a tar is built in memory."""
    num_workers: NumProcesses = 2
    """Number of processes that make samples."""


def prepare(config: PrepareConfig, folder: Path, seed: int) -> list[Manifest]:
    """Makes the missing sources in `folder`; returns the manifests of all, source by source and split by split.

    Raises:
        StorageError: the folder cannot be written, or the package with the images is not installed.
    """
    sections = [section for section in (config.scenes, config.emoji) if section is not None]
    manifests = []
    for section in sections:
        source = build_source(section, seed)
        for split in SPLITS:
            target = folder / source.name / split
            recipe = _digest(source, split, config.shard_samples)
            manifest = finished_source(target, recipe)
            if manifest is None:
                _logger.info("%s: making %s", target, source.name)
                manifest = _make(section, seed, split, target, recipe, config)
            else:
                _logger.info("%s: already finished, kept", target)
            manifests.append(manifest)
    write_attribution(folder, manifests)
    return manifests


@lru_cache(maxsize=2)
def build_source(section: ScenesConfig | EmojiConfig, seed: int) -> Source:
    """Builds the source that a section of the config describes. It is cached for the next chunk."""
    return SceneSource(section, seed) if isinstance(section, ScenesConfig) else EmojiSource(section, seed)


def _make(
    section: ScenesConfig | EmojiConfig, seed: int, split: str, target: Path, recipe: str, config: PrepareConfig
) -> Manifest:
    source = build_source(section, seed)
    start_source(target)
    skipped = Counter(source.skipped(split))
    chunks = _chunks(source, split)
    start_making = partial(_open_source, section, seed, split, chunks)
    num_workers = 1 if len(chunks) <= _FEW_CHUNKS else config.num_workers
    with ExitStack() as stack:
        writers = {
            task: stack.enter_context(
                ShardWriter(target, source=source.name, split=split, task=task, shard_samples=config.shard_samples)
            )
            for task in Task
        }
        results = stack.enter_context(closing(run_jobs_in_order(len(chunks), start_making, num_workers=num_workers)))
        for samples, reasons in results:
            skipped.update(reasons)
            for sample in samples:
                writers[sample.task].write(sample)
    return finish_source(
        target,
        source=source.name,
        split=split,
        licence=source.licence,
        attribution=source.attribution,
        recipe=recipe,
        entries=[entry for writer in writers.values() for entry in writer.entries],
        skipped=skipped,
        details=source.details(),
    )


_Chunk = tuple[Task, range]
_Made = tuple[list[Sample], Counter[str]]


def _chunks(source: Source, split: str) -> list[_Chunk]:
    return [
        (task, range(start, min(start + _CHUNK_SAMPLES, source.num_samples(split, task))))
        for task in Task
        for start in range(0, source.num_samples(split, task), _CHUNK_SAMPLES)
    ]


def _open_source(
    section: ScenesConfig | EmojiConfig, seed: int, split: str, chunks: list[_Chunk]
) -> Callable[[int], _Made]:
    """Builds the source in a worker process; returns a function that makes a chunk by its number."""
    return partial(_make_chunk, build_source(section, seed), split, chunks)


def _make_chunk(source: Source, split: str, chunks: list[_Chunk], number: int) -> _Made:
    task, sample_numbers = chunks[number]
    samples, skipped = [], Counter[str]()
    for sample_number in sample_numbers:
        try:
            samples.append(source.sample(split, task, sample_number))
        except SkippedInput as skip:
            skipped[skip.reason] += 1
    return samples, skipped


def _digest(source: Source, split: str, shard_samples: int) -> str:
    recipe = {**source.recipe(split), "shard_samples": shard_samples}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
