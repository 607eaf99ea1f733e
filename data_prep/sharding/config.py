"""Configuration of `ufork shard`."""

import hashlib
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from data_prep.filtering.duplicates import DuplicatesConfig
from data_prep.filtering.filters import FilterConfig
from data_prep.inputs.config import InputConfig
from data_prep.sharding.sample_making import SamplesConfig
from ufork.config import Config, NumProcesses


class ShardConfig(Config):
    """Everything that determines the shards of one source and split, except the collection itself."""

    input: InputConfig
    """Kind and path of the collection, and how it is read."""
    source: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$", max_length=100)
    """Name of the source, in the manifest and in every sample's id."""
    split: Literal["train", "heldout"] = "train"
    """Split that the collection becomes."""
    licence: str = "unknown"
    """SPDX identifier of the licence of records that name none themselves."""
    attribution: str = ""
    """Authors to credit; written beside the shards."""
    seed: NonNegativeInt = 0
    """Seed of the shuffle."""
    shuffle: bool = True
    """Whether all records are shuffled; otherwise they keep the order of the input."""
    shard_mb: PositiveFloat = 256.0
    """Approximate size of a tar, estimated from a sample of the records. A worker keeps one tar per task in memory."""
    shard_samples: PositiveInt | None = None
    """Number of records per tar before filtering; replaces `shard_mb`."""
    num_workers: NumProcesses = 2
    """Number of processes; the shards do not depend on it."""
    samples: SamplesConfig = SamplesConfig()
    """Samples that are made from a record."""
    filters: FilterConfig = FilterConfig()
    """Records that are dropped for what they hold."""
    duplicates: DuplicatesConfig = DuplicatesConfig()
    """Duplicates that are dropped; finding them reads all images one more time."""

    def digest(self) -> str:
        """Returns the SHA-256 of everything that determines the bytes of the shards."""
        return hashlib.sha256(self.model_dump_json(exclude={"num_workers"}).encode()).hexdigest()
