"""Where training data comes from and how it is packed."""

from typing import Literal

from pydantic import Field, PositiveInt

from ufork.config import Config

SKIPPED_BEFORE_LIMIT = 100
"""Skipped samples that tell nothing yet of a source."""


class SourceConfig(Config):
    """One folder of shards in a mixture."""

    folder: str
    """A source folder (with a `manifest.json`), relative to the run's folder unless absolute; or the URL of one, of any
    kind that fsspec opens (`s3://...`)."""
    reader: Literal["index", "stream"] = "index"
    """`index` reads each sample where its shard's index says, in any order. `stream` reads shards from their start, by
    webdataset, for storage that cannot give parts of files; samples are then shuffled less (`SequentialSource`)."""
    weight: float = Field(default=1.0, gt=0, le=1e9)
    """Share of the task's samples drawn from here, relative to the other sources' weights."""


class DataConfig(Config):
    """The mixture of each task and the shape of a packed row."""

    understanding: tuple[SourceConfig, ...] = ()
    generation: tuple[SourceConfig, ...] = ()
    seq_len: int = Field(default=2048, ge=1, le=2**24)
    """Length of a packed row; a sample that is longer is skipped and counted."""
    num_lanes: int = Field(default=12, ge=1, le=1_000_000)
    """Parts that the sample order is dealt into, each packed by itself. The number of data-parallel ranks must divide
    it; rows then do not depend on that number."""
    prompt_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of generation prompts replaced by the guidance null."""
    num_workers: int = Field(default=0, ge=0, le=256)
    """Processes of each data-parallel rank that make its rows ahead of the steps, each for lanes of its own (so at most
    as many as the rank has lanes); 0: rows are made between the steps."""
    prefetch_steps: PositiveInt = 2
    """Steps whose rows each of them makes ahead."""
    worker_timeout_seconds: float = Field(default=300.0, gt=0, le=1e8)
    """How long one may take for a step's rows before the run ends."""
    max_skipped_share: float = Field(default=0.05, ge=0, le=1)
    """Share of samples that may be damaged or unusable before the run ends; looked at from SKIPPED_BEFORE_LIMIT on."""


class TextConfig(Config):
    """The text tokenizer."""

    folder: str | None = None
    """A Hugging Face tokenizer folder. Without one, a byte-level BPE is trained on the texts of the shards."""
    vocab_size: PositiveInt = 1024
    """Size of the BPE that is trained."""
