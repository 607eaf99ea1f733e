"""The result of a finished trial, from the files of its run.

RUN/evaluation.json, RUN/phases/NAME/metrics.jsonl, recipe, cost -> TrialResult
result files, suite -> trials without a result, or an error where a file belongs to another recipe
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.ablation.cost import cost_of
from pipelines.ablation.suite import Suite, Trial, recipe_differences
from ufork.analysis.ablation.trial_result import Curve, TrialResult, load_results, result_file, scores_of
from ufork.errors import ConfigError
from ufork.eval.record import Evaluation
from ufork.redaction import redacted_values
from ufork.report.charts import thinned
from ufork.report.metrics import read_metrics
from ufork.run_folder import PhaseFolder, versions_in_use
from ufork.vocabulary import Task

CURVE_POINTS = 64
"""Points of a learning curve that a result keeps."""
MEASURED_DIGITS = 4
"""Digits of a probe's figures that a result keeps."""
SHOWN_DIFFERENCES = 5
"""Differences of recipes that an error names."""


def result_of(suite: Suite, trial: Trial, *, commit: str, machine: str) -> TrialResult:
    """Returns the result of a trial that is trained and evaluated.

    Raises:
        FileNotFoundError: it is not evaluated.
        EvaluationError: its evaluation is damaged.
    """
    recipe = trial.recipe
    evaluation = Evaluation.load(recipe.run_folder.evaluation)
    phases = [read_metrics(recipe.run_folder.phase(name).metrics).entries for name in recipe.phases]
    entries = _joined(phases)
    return TrialResult(
        suite=suite.config.name,
        arm=trial.arm,
        seed=trial.seed,
        values=redacted_values(dict(trial.values)),
        recipe=recipe.model_dump(mode="json", exclude={"demo": True, "run": {"folder"}}),
        cost=cost_of(recipe),
        steps=entries[-1]["step"] if entries else 0,
        scores=scores_of(evaluation),
        curves={task: curve for task in Task if (curve := _curve(entries, task)).steps},
        probes=_probes([recipe.run_folder.phase(name) for name in recipe.phases]),
        seconds={
            "train": sum(lines[-1].get("seconds", 0.0) for lines in phases if lines),
            "evaluate": evaluation.seconds,
        },
        commit=commit,
        machine=machine,
        versions=versions_in_use(),
    )


def _probes(phases: Sequence[PhaseFolder]) -> dict[str, list[dict[str, float]]]:
    """Returns what the phases' probes measured, to MEASURED_DIGITS, with steps counted from the first phase's start."""
    names = sorted({path.stem for phase in phases for path in phase.probes.glob("*.jsonl")})
    return {
        name: [
            {key: float(f"{value:.{MEASURED_DIGITS}g}") for key, value in entry.items() if not isinstance(value, str)}
            for entry in _joined([read_metrics(phase.probe(name)).entries for phase in phases])
        ]
        for name in names
    }


def _joined(phases: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Returns the metrics of all phases, with steps counted from the beginning of the first."""
    found: list[dict[str, Any]] = []
    for entries in phases:
        before = found[-1]["step"] if found else 0
        found += [entry | {"step": before + entry["step"]} for entry in entries]
    return found


def _curve(entries: list[dict[str, Any]], task: Task) -> Curve:
    losses = [(entry["step"], entry.get(f"loss/{task}", math.nan)) for entry in entries]
    kept = thinned([(step, loss) for step, loss in losses if math.isfinite(loss)], CURVE_POINTS)
    return Curve(steps=[int(step) for step, _ in kept], losses=[float(f"{loss:.5g}") for _, loss in kept])


def missing_trials(suite: Suite, results: Path) -> list[Trial]:
    """Returns the trials that have no result yet.

    Raises:
        ResultError: a result file is damaged.
        ConfigError: a result is that of another recipe than the suite's now; names the file and the differences.
    """
    missing = []
    for trial in suite.trials:
        path = result_file(results, trial.arm, trial.seed)
        try:
            stored = TrialResult.load(path).recipe
        except FileNotFoundError:
            missing.append(trial)
            continue
        if found := recipe_differences(stored, trial.recipe, origin=str(path)):
            raise ConfigError(
                f"{path}: the result of another recipe than the suite now has: {shortened(found)}; restore the suite,"
                " or remove the file to run the trial again"
            )
    return missing


def shortened(found: list[str]) -> str:
    """Returns the first differences as one text."""
    more = len(found) - SHOWN_DIFFERENCES
    return "; ".join(found[:SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def results_of(suite: Suite, results: Path) -> list[TrialResult]:
    """Returns the results that exist; raises as `missing_trials`."""
    missing_trials(suite, results)
    return load_results(results, list(suite.config.arms), suite.config.seeds)
