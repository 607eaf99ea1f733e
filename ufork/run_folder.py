"""The files of a run, each named once.

RUN/config.yaml versions.json
RUN/shards/SOURCE/SPLIT   images     RUN/codes/SOURCE/SPLIT   the same, encoded
RUN/tokenizer/{text,vision}
RUN/phases/NAME/{metrics.jsonl,drawings/,checkpoints/,weights/}
RUN/detector/ evaluation.json evaluation/ report.html
RUN/submissions/NNN   what a job runs     RUN/slurm/{jobs.jsonl,logs/,health/}   what befell it (`submission.py`)
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from ufork import __version__
from ufork.errors import StorageError

REPORTED_PACKAGES = (
    "torch",
    "deepspeed",
    "megatron-core",
    "webdataset",
    "transformers",
    "tokenizers",
    "numpy",
    "pillow",
)
"""Whose versions a run records."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved recipe."""
        return self.path / "config.yaml"

    @property
    def versions(self) -> Path:
        """Versions of Python and of the packages that matter."""
        return self.path / "versions.json"

    @property
    def shards(self) -> Path:
        """Source folders with images."""
        return self.path / "shards"

    @property
    def codes(self) -> Path:
        """Source folders with codes."""
        return self.path / "codes"

    @property
    def text_tokenizer(self) -> Path:
        """A Hugging Face tokenizer folder."""
        return self.path / "tokenizer" / "text"

    @property
    def vision_tokenizer(self) -> Path:
        """The frozen image codec."""
        return self.path / "tokenizer" / "vision"

    @property
    def detector(self) -> Path:
        """The judge of drawings."""
        return self.path / "detector"

    @property
    def evaluation(self) -> Path:
        """Scores; its example pictures lie in the folder of the same name."""
        return self.path / "evaluation.json"

    @property
    def examples(self) -> Path:
        """Pictures that the evaluation names."""
        return self.path / "evaluation"

    def phase(self, name: str) -> Path:
        """Metrics, drawings and weights of one phase."""
        return self.path / "phases" / name

    def weights(self, phase: str) -> Path:
        """A phase's exported weights, with what is needed to draw and answer with them."""
        return self.phase(phase) / "weights"

    def checkpoints(self, phase: str) -> Path:
        """What a phase can go on from."""
        return self.phase(phase) / "checkpoints"

    def skipped_samples(self, phase: str) -> Path:
        """The samples that a phase left out, by name."""
        return self.phase(phase) / "skipped_samples"

    def record(self, resolved: Mapping[str, Any], sections: tuple[str, ...]) -> None:
        """Writes `sections` of the resolved recipe into the run's config, and the versions in use.

        Other sections keep the values that their own verb last ran with.

        Raises:
            StorageError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            recorded = yaml.safe_load(self.config.read_text(encoding="utf-8")) if self.config.exists() else {}
            recorded |= {section: resolved[section] for section in ("run", *sections)}
            ordered = {section: recorded[section] for section in resolved if section in recorded}
            _replace(self.config, yaml.safe_dump(ordered, sort_keys=False))
            _replace(self.versions, json.dumps(versions_in_use(), indent=2) + "\n")
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be written ({error.strerror}); free space or permit writing there, or choose"
                f" another folder by run.folder (now {self.path.parent})"
            ) from None


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def versions_in_use() -> dict[str, str]:
    """Of ufork, Python, the platform and the packages that matter."""
    installed = {package: metadata.version(package) for package in REPORTED_PACKAGES}
    return {"ufork": __version__, "python": platform.python_version(), "platform": platform.platform(), **installed}
