"""Sources of the training data, and packing."""

from typing import Literal

from pydantic import Field

from ufork.config import Config, Location

SKIPPED_BEFORE_LIMIT = 100
"""`data.max_skipped_share` is not applied to fewer skipped samples than this."""

Compatibility = Literal["none", "release"]
"""`release` repeats, for comparisons, what the authors' code does wrong (specification of the release, section 8)."""
RELEASE_LOSS_POSITIONS = 256
"""Positions of an image that the release's loss reads, however many there are."""


class SourceConfig(Config):
    """One folder of shards in a mixture."""

    folder: Location
    """A source folder (with a `manifest.json`), relative to the run's folder unless absolute; or the URL of one, of any
    kind that fsspec opens (`s3://...`). Records show no credentials of a URL (`ufork.redaction`)."""
    reader: Literal["index", "stream"] = "index"
    """`index` reads each sample where its shard's index says, in any order. `stream` reads shards from their start, by
    webdataset, for storage that only reads whole files; samples are then shuffled less (`SequentialSource`)."""
    weight: float = Field(default=1.0, gt=0, le=1e9)
    """Share of the task's samples that are drawn from this source, relative to the other sources' weights."""


class DataConfig(Config):
    """The sources of each task, and how their samples are packed."""

    understanding: tuple[SourceConfig, ...] = ()
    generation: tuple[SourceConfig, ...] = ()
    seq_len: int = Field(default=2048, ge=1, le=2**24)
    """Tokens of a packed sequence; a longer sample is skipped and counted."""
    num_lanes: int = Field(default=12, ge=1, le=1_000_000)
    """Number of lanes that the samples are divided among, each packed by itself. It must be a multiple of the number of
    data-parallel ranks; packed sequences then do not depend on that number."""
    prompt_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of generation prompts replaced by the guidance null."""
    # omitted unless set, so that the data of runs made before this key existed stay theirs
    compatibility: Compatibility = Field(default="none", exclude_if=lambda value: value == "none")
    """`release` chooses targets as the authors' code does, wrong as that is, to compare losses with it. A question and
    its answer are tokenised as one text, so that the first token of the answer is no target if it merges with the
    question's last. Of an image to draw, the first RELEASE_LOSS_POSITIONS positions are targets; the others, which
    nothing depends on then, are left out."""
    num_workers: int = Field(default=0, ge=0, le=256)
    """Loader processes of each data-parallel rank, which make its packed sequences ahead of the steps. Each serves
    different lanes, so at most as many as the rank has lanes are started. 0: the rank makes them between the steps."""
    prefetch_steps: int = Field(default=2, ge=1, le=1000)
    """Steps for which each loader process makes packed sequences ahead."""
    worker_timeout_seconds: float = Field(default=300.0, gt=0, le=1e8)
    """Time in which a step's packed sequences must arrive from a loader process; otherwise the run ends."""
    max_skipped_share: float = Field(default=0.05, ge=0, le=1)
    """Share of samples that may be skipped before the run ends; not applied to fewer than SKIPPED_BEFORE_LIMIT."""


PADDED_TO = 128
"""The token embedding has a multiple of this many rows, which tensor parallelism can partition (as in Megatron-LM)."""


class TextConfig(Config):
    """The text tokenizer."""

    folder: str | None = None
    """A Hugging Face tokenizer folder. Without one, the tokenizer is that of `model.start`, if there is one, or else a
    byte-level BPE that is trained on the texts of the shards."""
    vocab_size: int = Field(default=1024, ge=1, le=2**24)
    """Size of the BPE that is trained."""

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the token embedding."""
        return padded_vocab_size(self.vocab_size)


def padded_vocab_size(size: int) -> int:
    """Returns `size` rounded up to a multiple of PADDED_TO."""
    return -(-size // PADDED_TO) * PADDED_TO
