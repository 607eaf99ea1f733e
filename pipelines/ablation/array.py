"""A suite as jobs of Slurm: one that prepares its data, an array with a task per trial, and one that writes the tables.

Suite -> FOLDER/submissions/NNN: suite.yaml, recipe.yaml, code -> sbatch slurm/ablate.sbatch, three times
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.ablation.origin import COMMIT_FILE, SOURCE, commit_of
from pipelines.ablation.shared_data import is_prepared
from pipelines.ablation.suite import Suite, Trial
from pipelines.cluster.submission import Submission, ask_slurm
from ufork.config import read_mapping
from ufork.errors import ConfigError
from ufork.files import make_folder, write_whole
from ufork.strict_yaml import dump_yaml

SCRIPT = Path(__file__).parents[2] / "slurm" / "ablate.sbatch"


@dataclass(frozen=True, kw_only=True)
class Array:
    """What to submit."""

    suite: Suite
    path: Path
    """File of the suite."""
    overrides: Sequence[str]
    results: Path
    parallel: int
    """Tasks of the array that run at the same time."""
    options: Sequence[str] = ()
    """Further options of sbatch, such as partition=gpu."""


def submit(array: Array, missing: Sequence[Trial], environment: Mapping[str, str]) -> list[int]:
    """Submits the jobs; returns their numbers.

    Args:
        array: what to submit.
        missing: trials without a result.
        environment: of Slurm's commands, and so of the jobs.

    Raises:
        ConfigError: the batch script is not installed.
        StorageError: the suite's folder cannot be written.
        ClusterError: Slurm refuses a job; those before it are cancelled.
    """
    if not SCRIPT.exists():
        raise ConfigError(f"{SCRIPT}: missing; submit from a checkout of ufork (pip install -e), which has slurm/")
    suite = array.suite
    submission = Submission.next_of(suite.folder.absolute())
    kept = _keep(array, submission, environment)
    logs = make_folder(suite.folder.absolute() / "slurm" / "logs")
    variables = {"UFORK_PYTHON": sys.executable, "PYTHONPATH": str(submission.code)}
    arguments = [str(SCRIPT), str(kept), *array.overrides, "--results", str(array.results.absolute())]
    options = [f"--output={str(logs).replace('%', '%%')}/%A-%a.log", *(f"--{option}" for option in array.options)]
    jobs: list[int] = []

    def queue(*more: str, after: str = "", mode: str = "") -> None:
        dependency = [f"--dependency={after}:{jobs[-1]}", "--kill-on-invalid-dep=yes"] if after and jobs else []
        command = ["sbatch", "--parsable", *options, *dependency, *more, *arguments, *([mode] if mode else [])]
        jobs.append(int(ask_slurm({**environment, **variables}, *command).split(";")[0]))

    try:
        if not is_prepared(suite):
            queue(mode="--prepare")
        numbers = ",".join(str(number) for number, trial in enumerate(suite.trials) if trial in missing)
        queue(f"--array={numbers}%{array.parallel}", after="afterok")
        queue(after="afterany", mode="--table")
    except BaseException:
        if jobs:
            ask_slurm(environment, "scancel", *map(str, jobs))
        raise
    return jobs


def _keep(array: Array, submission: Submission, environment: Mapping[str, str]) -> Path:
    """Copies code, suite and recipe, so that later changes of them do not reach the jobs; returns the suite's copy."""
    submission.keep_code()
    write_whole(submission.code / COMMIT_FILE, commit_of(SOURCE, environment) + "\n")
    mapping = read_mapping(array.path)
    write_whole(submission.recipe, (array.path.parent / mapping["recipe"]).read_text(encoding="utf-8"))
    kept = submission.path / "suite.yaml"
    write_whole(kept, dump_yaml(mapping | {"recipe": submission.recipe.name}))
    return kept
