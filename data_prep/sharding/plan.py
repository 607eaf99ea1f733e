"""Divides the records into jobs: consecutive ranges of positions in the shuffled order.

ShardConfig, RecordIndex, Input  ->  ShardPlan, stored in plan.json, which resuming reads instead of measuring again
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_prep.inputs.record import Input
from data_prep.sharding.config import ShardConfig
from data_prep.sharding.record_index import RecordIndex
from data_prep.sharding.sample_making import SampleMaker
from data_prep.sharding.shuffle import Shuffle
from ufork.data.shards.tar import BLOCK_BYTES
from ufork.errors import SampleError, ShardError
from ufork.files import named_errors, write_whole

_MEASURED_RECORDS = 1000


@dataclass(frozen=True)
class ShardPlan:
    """Records of each job."""

    num_records: int
    job_records: int
    seed: int | None
    """Seed of the shuffle; None keeps the order of the input."""

    @property
    def num_jobs(self) -> int:
        """Number of jobs: the number of shards per task, including those that turn out empty."""
        return -(-self.num_records // self.job_records)

    def positions(self, job: int) -> range:
        """Returns the positions of `job` in the shuffled order."""
        return range(job * self.job_records, min((job + 1) * self.job_records, self.num_records))

    def numbers(self, job: int) -> np.ndarray:
        """Returns the numbers of the records at the positions of `job`: int64 [positions]."""
        positions = self.positions(job)
        return np.arange(positions.start, positions.stop) if self.seed is None else self._shuffle.numbers(positions)

    @property
    def _shuffle(self) -> Shuffle:
        assert self.seed is not None
        return Shuffle(self.num_records, self.seed)

    @classmethod
    def load(cls, path: Path) -> "ShardPlan":
        """Reads the plan stored at `path`.

        Raises:
            ShardError: there is none.
        """
        try:
            with named_errors(path):
                return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ShardError(f"{path}: missing; run `ufork shard` with --step record_index first") from None


def make_plan(path: Path, config: ShardConfig, record_index: RecordIndex, source: Input) -> ShardPlan:
    """Returns the plan stored at `path`; makes and stores it if there is none.

    Raises:
        StorageError: the plan cannot be written.
    """
    if not path.exists():
        job_records = config.shard_samples or _records_per_shard(config, record_index, source)
        plan = ShardPlan(len(record_index), job_records, config.seed if config.shuffle else None)
        write_whole(path, json.dumps(asdict(plan)))
    return ShardPlan.load(path)


def _records_per_shard(config: ShardConfig, record_index: RecordIndex, source: Input) -> int:
    """Estimates how many records fill a shard of the task with the larger samples, from evenly spaced records.

    Unreadable records count as empty.
    """
    maker = SampleMaker(config.samples, source=config.source, split=config.split, licence=config.licence)
    numbers = np.unique(np.linspace(0, len(record_index) - 1, _MEASURED_RECORDS).astype(np.int64))
    num_bytes = dict.fromkeys(config.samples.tasks, 0)
    for record in record_index.read(numbers):
        try:
            image = None if record.image is None else source.image(record)
            for sample in maker.samples(record, image):
                num_bytes[sample.task] += sum(map(_bytes_in_tar, sample.to_members().values()))
        except SampleError:
            continue
    return max(1, int(config.shard_mb * 1e6 * len(numbers) / max(1, *num_bytes.values())))


def _bytes_in_tar(contents: bytes) -> int:
    return BLOCK_BYTES + len(contents) + -len(contents) % BLOCK_BYTES
