"""Shards, their indexes and manifests."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from data_prep.sharding.verify import verify_shards
from tests.fuzz.mutations import json_text, tar
from tests.fuzz.targets.target import Target, differs
from tests.tiny import CODEC_SIZES, tiny_tokenizer, write_codes_source
from ufork.data.prompts import encode_sample
from ufork.data.shards.sequential_source import SequentialSource
from ufork.data.shards.source import ShardSource
from ufork.errors import SampleError, ShardError, UforkError
from ufork.vocabulary import Task


@dataclass(frozen=True)
class Samples:
    """What training reads of a source."""

    kept: Mapping[str, tuple[bytes, ...]]
    num_skipped: int


def write_source(folder: Path) -> None:
    """Writes a source of both tasks."""
    write_codes_source(folder / "source", num_samples=6)


def read_source(folder: Path) -> Samples:
    """Reads all samples, as training does; checks that those kept and skipped are as many as the manifest says."""
    kept: dict[str, tuple[bytes, ...]] = {}
    num_skipped = 0
    for task in Task:
        source = ShardSource(folder / "source", task)
        samples = source.read(range(len(source)))
        assert len(samples) == len(source) == source.manifest.num_samples(task)
        in_order = SequentialSource(folder / "source", task)
        for number in range(len(in_order)):
            with suppress(UforkError):
                in_order[number]
        for number, sample in enumerate(samples):
            try:
                if isinstance(sample, SampleError):
                    raise sample
                encoded = encode_sample(sample, _tokenizer(), codec=CODEC_SIZES, seq_len=500)
            except SampleError as error:
                assert error.reason and len(str(error)) < 2000
                num_skipped += 1
                continue
            kept[f"{task} {number}"] = (encoded.token_ids_L.tobytes(), encoded.codes_IC.tobytes())
    return Samples(kept, num_skipped)


def read_verified(folder: Path) -> Samples:
    """Reads a source that `ufork shard verify` accepts; raises the first fault that it finds."""
    if faults := verify_shards(folder / "source"):
        raise ShardError(faults[0])
    return read_source(folder)


def invents(valid: Samples, found: Samples) -> str:
    """Refuses samples that are not the valid ones; fewer may be, since the manifest says how many there are."""
    return "" if found.kept.items() <= valid.kept.items() else "other samples, without an error"


@cache
def _tokenizer():
    return tiny_tokenizer()


SHARDS: dict[str, Target] = {
    "shard": Target(
        write=write_source,
        files={"source/understanding-00000.tar": tar, "source/generation-00000.tar": tar},
        read=read_source,
    ),
    "verified shard": Target(
        write=write_source, files={"source/generation-00000.tar": tar}, read=read_verified, fault=differs
    ),
    "index": Target(
        write=write_source,
        files={"source/understanding-00000.tar.index.json": json_text},
        read=read_source,
        fault=differs,
    ),
    "manifest": Target(write=write_source, files={"source/manifest.json": json_text}, read=read_source, fault=invents),
}
