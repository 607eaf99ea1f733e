"""State of unfinished shards, from which `ufork shard` resumes: TARGET/.work.

config.yaml              configuration; resuming with another one is refused
record_index/            data_prep/sharding/record_index.py
plan.json                data_prep/sharding/plan.py: records of each job
fingerprints/00012.npy   data_prep/sharding/fingerprints.py: fingerprints of one chunk of records
duplicates.npy           which records are duplicates
dropped/00012.jsonl      records that a job dropped, with the reasons
done/00012.json          shards and counts of a job; written last
"""

import json
from pathlib import Path

from data_prep.sharding.config import ShardConfig
from ufork.config import dotted_values
from ufork.errors import ConfigError
from ufork.files import make_folder, storage_errors, write_whole

NAME = ".work"
_FINGERPRINTS, _DROPPED, _DONE = "fingerprints", "dropped", "done"


class WorkFolder:
    """Paths of the files in TARGET/.work."""

    def __init__(self, target: Path) -> None:
        """Sets the paths; `target` is the folder of the shards."""
        self.target, self.folder = target, target / NAME
        self.config, self.plan = self.folder / "config.yaml", self.folder / "plan.json"
        self.record_index, self.duplicates = self.folder / "record_index", self.folder / "duplicates.npy"

    def fingerprint_chunk(self, chunk: int) -> Path:
        """Returns the path of the fingerprints of a chunk."""
        return self.folder / _FINGERPRINTS / f"{chunk:05d}.npy"

    def job_dropped(self, job: int) -> Path:
        """Returns the path of the records that a job dropped."""
        return self.folder / _DROPPED / f"{job:05d}.jsonl"

    def job_done(self, job: int) -> Path:
        """Returns the path of the file that marks a job as done."""
        return self.folder / _DONE / f"{job:05d}.json"

    def claim(self, config: ShardConfig) -> None:
        """Creates the folder for `config`, or checks that it was created for the same one.

        Raises:
            ConfigError: it was created for another config, or `target` holds shards of another origin.
            StorageError: it cannot be written.
        """
        if not self.config.exists():
            self._refuse_other_shards()
        for name in (_FINGERPRINTS, _DROPPED, _DONE):
            make_folder(self.folder / name)
        if not self.config.exists():
            write_whole(self.config, config.to_yaml())
        begun = type(config).from_yaml(self.config)
        if begun.digest() != config.digest():
            changes = _changes(begun, config)
            raise ConfigError(
                f"{self.target}: started with another config ({changes}); restore it, or give another folder"
            )

    def release(self) -> None:
        """Undoes `claim` where nothing could be made, so that the same folder can be tried with another config."""
        with storage_errors(self.config):
            self.config.unlink(missing_ok=True)

    def _refuse_other_shards(self) -> None:
        if (other := next(self.target.glob("*.tar"), None)) is not None:
            raise ConfigError(f"{self.target}: already holds other shards, such as {other.name}; give another folder")


def _changes(before: ShardConfig, after: ShardConfig) -> str:
    old, new = (dotted_values(config.model_dump(mode="json")) for config in (before, after))
    names = [name for name in old | new if old.get(name) != new.get(name) and name != "num_workers"]
    return ", ".join(f"{name} was {json.dumps(old.get(name))}, is {json.dumps(new.get(name))}" for name in names)
