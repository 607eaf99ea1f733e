"""Names of the files in a run's folder, in one place.

RUN/config.yaml versions.json
RUN/shards/SOURCE/SPLIT   samples with images     RUN/codes/SOURCE/SPLIT   the same samples with codes
RUN/tokenizer/{text,vision}
RUN/phases/NAME/{metrics.jsonl,drawings/,probes/,checkpoints/,weights/,skipped_samples/}
RUN/detector/ evaluation.json evaluation/ alignment/ report.html
RUN/failures/   why ranks failed
RUN/demo.json logs/ verification.json   of `ufork demo` and `ufork verify`
RUN/recipe.yaml prepared.yaml   of `ufork ablate`
RUN/submissions/NNN   what a job runs     RUN/slurm/{jobs.jsonl,logs/,health/,failures/}   what happened to it
"""

import json
import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from ufork import __version__
from ufork.config import read_mapping
from ufork.errors import ConfigError
from ufork.files import make_folder, write_whole
from ufork.strict_yaml import dump_yaml

log = logging.getLogger(__name__)

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
"""Packages whose versions a run records."""


@dataclass(frozen=True)
class PhaseFolder:
    """Paths inside the folder of one phase of a run."""

    path: Path

    @property
    def metrics(self) -> Path:
        """JSON lines with the means over the last steps; written by telemetry."""
        return self.path / "metrics.jsonl"

    @property
    def drawings(self) -> Path:
        """Grids of drawings made during training."""
        return self.path / "drawings"

    def drawing(self, step: int) -> Path:
        """The grid drawn after `step` steps."""
        return self.drawings / f"step-{step:06d}.png"

    @property
    def probes(self) -> Path:
        """Results of probes, a file of JSON lines each."""
        return self.path / "probes"

    def probe(self, name: str) -> Path:
        """JSON lines with the figures of a probe; written by telemetry."""
        return self.probes / f"{name}.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints that training resumes from."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """The exported weights, with the tokenizers that drawing and answering need."""
        return self.path / "weights"

    @property
    def skipped_samples(self) -> Path:
        """Ids of the samples that training skipped, with the reasons."""
        return self.path / "skipped_samples"


@dataclass(frozen=True)
class RunFolder:
    """Paths inside the folder of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved recipe."""
        return self.path / "config.yaml"

    @property
    def versions(self) -> Path:
        """Versions of ufork, Python and the packages that matter."""
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
    def alignment(self) -> Path:
        """Agreement of image and text features by layer, as `ufork align` measures it."""
        return self.path / "alignment"

    @property
    def detector(self) -> Path:
        """The object detector that scores drawings."""
        return self.path / "detector"

    @property
    def evaluation(self) -> Path:
        """Scores of the evaluation."""
        return self.path / "evaluation.json"

    @property
    def examples(self) -> Path:
        """Images that the evaluation refers to."""
        return self.path / "evaluation"

    @property
    def report(self) -> Path:
        """The report as a web page."""
        return self.path / "report.html"

    @property
    def demo(self) -> Path:
        """What a demo was fitted to, and how long its verbs took."""
        return self.path / "demo.json"

    @property
    def logs(self) -> Path:
        """Output of the verbs of a demo, a file per verb."""
        return self.path / "logs"

    @property
    def verification(self) -> Path:
        """Results of a run beside those that are recorded."""
        return self.path / "verification.json"

    @property
    def recipe(self) -> Path:
        """The resolved recipe that a suite runs in this folder."""
        return self.path / "recipe.yaml"

    @property
    def prepared(self) -> Path:
        """Sections of the recipe that a suite's shards and tokenizers are finished for."""
        return self.path / "prepared.yaml"

    @property
    def submissions(self) -> Path:
        """Recipe, code and scripts that Slurm jobs run, a numbered folder per submission."""
        return self.path / "submissions"

    @property
    def jobs(self) -> Path:
        """Events of Slurm jobs, as JSON lines; job scripts append to it."""
        return self.path / "slurm" / "jobs.jsonl"

    @property
    def job_logs(self) -> Path:
        """Logs of Slurm jobs, a file per job and rank."""
        return self.path / "slurm" / "logs"

    @property
    def failures(self) -> Path:
        """Failure files of ranks that ran without Slurm, one per rank."""
        return self.path / "failures"

    def job_failures(self, job: int, restart: int) -> Path:
        """Failure files of one start of a Slurm job, one per rank."""
        return self.path / "slurm" / "failures" / f"{job}.{restart}"

    def phase(self, name: str) -> PhaseFolder:
        """The folder of one phase."""
        return PhaseFolder(self.path / "phases" / name)

    def phases(self) -> list[PhaseFolder]:
        """Folders of all phases that have been trained, by name."""
        return [PhaseFolder(path) for path in sorted((self.path / "phases").glob("*")) if path.is_dir()]

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> Self:
        """The run that holds the checkpoint RUN/phases/NAME/checkpoints/step-N, of which parts may be links."""
        paths = Path(os.path.abspath(checkpoint)), checkpoint.resolve()
        named, real = (cls(path.parent.parent.parent.parent) for path in paths)
        return named if named.text_tokenizer.exists() else real

    @classmethod
    def of_weights(cls, weights: Path) -> Self:
        """The run that holds RUN/phases/NAME/weights; for weights elsewhere, a folder that is no run."""
        return cls(weights.resolve().parent.parent.parent)

    def record(self, resolved: Mapping[str, Any], sections: tuple[str, ...]) -> None:
        """Writes `sections` of the resolved recipe into `config.yaml`, and the versions in use.

        Other sections keep the values that their own command last ran with. Nothing reads them back to train, so a
        damaged `config.yaml` is replaced, with a warning.

        Raises:
            StorageError: the folder cannot be written.
        """
        choose = f"another folder by run.folder (now {self.path.parent})"
        make_folder(self.path, choose=choose)
        recorded = self._recorded() | {section: resolved[section] for section in ("run", *sections)}
        ordered = {section: recorded[section] for section in resolved if section in recorded}
        write_whole(self.config, dump_yaml(ordered), durable=True, choose=choose)
        write_whole(self.versions, json.dumps(versions_in_use(), indent=2) + "\n", durable=True, choose=choose)

    def _recorded(self) -> dict[str, Any]:
        if not self.config.exists():
            return {}
        try:
            return read_mapping(self.config)
        except ConfigError as error:
            log.warning("damaged, and written anew without the sections of earlier commands: %s", error)
            return {}


def trained_seq_len(weights: Path) -> int | None:
    """Returns the length of the packed sequences that RUN/phases/NAME/weights was trained on, in tokens.

    None for weights outside a run, and where the run's config does not say it.
    """
    try:
        length: Any = read_mapping(RunFolder.of_weights(weights).config)
        for key in ("phases", weights.resolve().parent.name, "data", "seq_len"):
            length = length[key]
    except (ConfigError, LookupError, TypeError):
        return None
    return length if type(length) is int and length > 0 else None


def versions_in_use() -> dict[str, str]:
    """Versions of ufork, Python, the platform and the packages that matter."""
    installed = {package: metadata.version(package) for package in REPORTED_PACKAGES}
    return {"ufork": __version__, "python": platform.python_version(), "platform": platform.platform(), **installed}
