"""What is kept beside shards while they are made, so that making them can go on at any time: TARGET/.work.

config.yaml            what they are made by; another config is refused
record_index/             data_prep/sharding/record_index.py
plan.json              how the records are divided into jobs
fingerprints/00012.npy       data_prep/sharding/fingerprints.py: fingerprints of one chunk of records
duplicates.npy         which records repeat another
dropped/00012.jsonl    what a job left out, and why
done/00012.json        written last: the shards of a job, with what was counted
"""

import json
from pathlib import Path

from data_prep.sharding.config import ShardConfig
from ufork.errors import ConfigError
from ufork.files import make_folder, write_whole

NAME = ".work"
_SURVEY, _DROPPED, _DONE = "fingerprints", "dropped", "done"


class WorkFolder:
    """Its files, by name."""

    def __init__(self, target: Path) -> None:
        """`target` is where the shards go."""
        self.target, self.folder = target, target / NAME
        self.config, self.plan = self.folder / "config.yaml", self.folder / "plan.json"
        self.record_index, self.duplicates = self.folder / "record_index", self.folder / "duplicates.npy"

    def fingerprint_chunk(self, chunk: int) -> Path:
        """What is known of its records."""
        return self.folder / _SURVEY / f"{chunk:05d}.npy"

    def job_dropped(self, job: int) -> Path:
        """What it left out."""
        return self.folder / _DROPPED / f"{job:05d}.jsonl"

    def job_done(self, job: int) -> Path:
        """There when it is done."""
        return self.folder / _DONE / f"{job:05d}.json"

    def claim(self, config: ShardConfig) -> None:
        """Makes the folder, for this config alone.

        Raises:
            ConfigError: it was begun with another one, or holds shards that were not made here.
            StorageError: it cannot be made.
        """
        if not self.config.exists():
            self._refuse_others()
        for name in (_SURVEY, _DROPPED, _DONE):
            make_folder(self.folder / name)
        if not self.config.exists():
            write_whole(self.config, config.to_yaml())
        begun = type(config).from_yaml(self.config)
        if begun.digest() != config.digest():
            changes = _changes(begun, config)
            raise ConfigError(
                f"{self.target}: begun with other values ({changes}); give those, another folder, or delete this one"
            )

    def _refuse_others(self) -> None:
        if strangers := [path.name for path in self.target.glob("*.tar")][:1]:
            raise ConfigError(f"{self.target}: holds shards of another making, as {strangers[0]}; give another folder")


def _changes(before: ShardConfig, after: ShardConfig) -> str:
    old, new = _flat(before.model_dump(mode="json")), _flat(after.model_dump(mode="json"))
    names = [name for name in old | new if old.get(name) != new.get(name) and name != "num_workers"]
    return ", ".join(f"{name}={json.dumps(old.get(name))}, now {json.dumps(new.get(name))}" for name in names)


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
