"""A finished source of random image codes, for benchmarks that read a stream."""

from pathlib import Path
from typing import Any

import numpy as np

from ufork.data.shards.sample import Sample
from ufork.data.shards.writer import ShardWriter, finish_source, start_source
from ufork.model.config import Dimensions
from ufork.vocabulary import Task

PROMPT = "a red dog left of two yellow buses"
"""Prompt of every sample."""
NUM_SAMPLES = 100
SIDE = 8
"""Positions of an image, in each direction."""


def write_random_source(folder: Path, dimensions: Dimensions) -> None:
    """Writes generation samples with the sizes of `dimensions`; the folder's name is the source's."""
    start_source(folder)
    shape, random = (SIDE, SIDE, dimensions.codes_per_position), np.random.default_rng(0)
    with ShardWriter(folder, source=folder.name, split="train", task=Task.GENERATION, shard_samples=100) as writer:
        for number in range(NUM_SAMPLES):
            codes = random.integers(0, dimensions.codebook_size, shape, dtype=np.uint16)
            names = {"id": str(number), "source": folder.name, "licence": "CC0-1.0"}
            writer.write(Sample(task=Task.GENERATION, prompt=PROMPT, codes=codes, **names))
    described: dict[str, Any] = {"licence": "CC0-1.0", "attribution": "", "recipe": "", "details": {}, "skipped": {}}
    finish_source(folder, source=folder.name, split="train", entries=writer.entries, **described)
