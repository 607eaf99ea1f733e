"""Runs a recipe as a demo and compares its scores with the recorded ones.

Demo, Measured -> Outcome -> Judged per score -> table, RUN/verification.json, or VerificationError
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

from pipelines.demo.run import Demo
from pipelines.verification.judge import Judged, judge, passes
from pipelines.verification.recorded import LEAST_RUNS, SCORES, Measured, RecordedRecipe, mean_and_spread
from ufork.errors import ConfigError, UforkError
from ufork.files import write_whole
from ufork.run_folder import versions_in_use


class VerificationError(UforkError):
    """A recipe did not come out as recorded."""


def require_recorded(recorded: RecordedRecipe, machine: str) -> Measured:
    """Returns the runs to compare with on a class of machine.

    Raises:
        ConfigError: there are too few to know their spread, so that a run would tell nothing.
    """
    found = recorded.on(machine)
    if found is not None and any(len(found.values(score)) >= LEAST_RUNS for score in SCORES):
        return found
    num_runs = {each.machine: len(each.runs) for each in recorded.measured}
    known = ", ".join(f"{name} {number}" for name, number in num_runs.items())
    raise ConfigError(
        f"{recorded.recipe}: nothing to compare with on the class of machine {machine}: at least {LEAST_RUNS} recorded"
        f" runs are needed (recorded: {known}). `ufork demo` runs the recipe without a comparison"
    )


def verify(demo: Demo, recorded: RecordedRecipe, measured: Measured) -> str:
    """Runs `demo` and returns the comparison with `measured` as text for a terminal.

    Raises:
        VerificationError: a score is worse than recorded, or missing; the message has the comparison.
        UforkError: a verb failed.
        KeyboardInterrupt: Ctrl-C; the same command resumes.
    """
    outcome = demo.run()
    judged, path = judge(measured, outcome.scores), demo.recipe.run_folder.verification
    content = {
        "recipe": recorded.recipe,
        "as_recorded": passes(judged),
        "scores": [asdict(each) for each in judged],
        "seed": demo.recipe.run.seed,
        "minutes": outcome.minutes,
        "machine_class": measured.machine,
        "machine": demo.choice.machine.model_dump(),
        "versions": versions_in_use(),
    }
    write_whole(path, json.dumps(content, indent=1) + "\n")
    recorded_minutes = mean_and_spread([run.minutes for run in measured.runs], digits=1)
    text = "\n".join(
        [
            f"{recorded.recipe} on {measured.machine}: {len(measured.runs)} runs recorded on {measured.date}",
            comparison(judged),
            f"{'minutes':<10}{recorded_minutes:>16}{'':>12}{outcome.minutes:>8.1f}  (of {measured.hardware})",
            f"details: {path}; to run it again, remove {demo.recipe.run_folder.path}",
        ]
    )
    if not passes(judged):
        raise VerificationError(f"not as recorded\n{text}")
    return f"as recorded\n{text}"


def comparison(judged: Sequence[Judged]) -> str:
    """Returns a table: score, recorded mean ± spread, least value that counts as recorded, now, verdict."""
    rows = [f"{'':<10}{'recorded':>16}{'at least':>12}{'now':>8}  verdict"]
    for each in judged:
        lowest = "-" if each.lowest is None else f"{each.lowest:.2f}"
        now = "-" if each.now is None else f"{each.now:.2f}"
        rows.append(f"{each.score:<10}{mean_and_spread(each.recorded):>16}{lowest:>12}{now:>8}  {each.verdict}")
    return "\n".join(rows)
