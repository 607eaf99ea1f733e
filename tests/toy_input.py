"""A small collection for tests of sharding, and a program that shards it slowly, so that tests can kill it."""

import io
import sys
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from PIL import Image

from data_prep.inputs.record import Dropped, Record
from data_prep.sharding.config import ShardConfig
from data_prep.sharding.run import shard
from ufork.config import Config
from ufork.errors import SampleError
from ufork.vocabulary import Task


@cache
def tiny_png() -> bytes:
    """A valid PNG; bytes appended to it are ignored by decoders."""
    stream = io.BytesIO()
    Image.frombytes("L", (4, 4), bytes(range(0, 256, 16))).save(stream, "PNG")
    return stream.getvalue()


class ToyConfig(Config):
    """A collection of `size` entries: each tenth is dropped, each fifth is text only, each seventh image unreadable."""

    size: int
    image_bytes: int = 600


class ToyShardConfig(ShardConfig):
    input: ToyConfig


class ToyInput:
    def __init__(self, config: ToyConfig, delay_seconds: float = 0.0) -> None:
        self.config, self.delay_seconds = config, delay_seconds

    def records(self) -> Iterator[Record | Dropped]:
        for number in range(self.config.size):
            if number % 10 == 9:
                yield Dropped(f"line {number}", "no image and no text")
            elif number % 5 == 0:
                yield Record(id=f"r{number}", turns=((f"what is {number}?", f"{number} ä"),))
            else:
                yield Record(id=f"r{number}", image=("a", number), caption=f"picture {number}", licence="CC0-1.0")

    def image(self, record: Record) -> bytes:
        time.sleep(self.delay_seconds)
        number = int(record.image[1])
        if number % 7 == 0:
            raise SampleError("image is gone", sample=str(number))
        return tiny_png() + f"{number:08d}".encode() * (self.config.image_bytes // 8)


def toy_shard_config(size: int = 100, **changes) -> ToyShardConfig:
    values = {"input": {"size": size}, "source": "toy", "licence": "CC-BY-4.0", "shard_samples": 8, "num_workers": 1}
    return ToyShardConfig.from_mapping({**values, **changes}, origin="test")


def opener(config: ToyShardConfig) -> partial:
    return partial(ToyInput, config.input)


def kept_ids(size: int) -> dict[Task, set[str]]:
    """Ids of the samples in the shards of `size` records."""
    records = [entry for entry in ToyInput(ToyConfig(size=size)).records() if isinstance(entry, Record)]
    readable = [record.id for record in records if record.image and int(record.image[1]) % 7]
    with_turns = readable + [record.id for record in records if record.turns]
    return {
        Task.GENERATION: {f"toy-train-generation-{name}" for name in readable},
        Task.UNDERSTANDING: {f"toy-train-understanding-{name}" for name in with_turns},
    }


if __name__ == "__main__":
    target, size, delay_seconds = sys.argv[1:]
    config = toy_shard_config(int(size), num_workers=2, shard_samples=50)
    shard(config, Path(target), partial(ToyInput, config.input, float(delay_seconds)))
