"""What a collection is made into shards by."""

import hashlib
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from data_prep.filtering.duplicates import DuplicatesConfig
from data_prep.filtering.filters import FilterConfig
from data_prep.inputs.config import InputConfig
from data_prep.sharding.sample_making import SamplesConfig
from ufork.config import Config


class ShardConfig(Config):
    """All that the shards of one source and split follow from, besides the collection itself."""

    input: InputConfig
    """What is read, and of which kind it is."""
    source: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$")
    """Its name in the manifest and in every sample's id."""
    split: Literal["train", "heldout"] = "train"
    """Which part of the source this is."""
    licence: str = "unknown"
    """Of records that name none, as an SPDX identifier."""
    attribution: str = ""
    """Whose work it is; written beside the shards."""
    seed: NonNegativeInt = 0
    """Of the shuffle."""
    shuffle: bool = True
    """Whether all records are shuffled; else they keep the input's order."""
    shard_mb: PositiveFloat = 256.0
    """About how large a tar becomes, by a look at some of the images. A worker holds one of each task in memory."""
    shard_samples: PositiveInt | None = None
    """Exactly so many records for each tar, before any is left out, in place of `shard_mb`."""
    num_workers: PositiveInt = 2
    """Processes; what they write does not depend on their number."""
    samples: SamplesConfig = SamplesConfig()
    """What records are made into."""
    filters: FilterConfig = FilterConfig()
    """Which records are left out."""
    duplicates: DuplicatesConfig = DuplicatesConfig()
    """Which repetitions are left out; to find them all images are read once more."""

    def digest(self) -> str:
        """Of all that the bytes follow from."""
        return hashlib.sha256(self.model_dump_json(exclude={"num_workers"}).encode()).hexdigest()
