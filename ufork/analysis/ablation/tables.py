"""The results of a suite as a page of Markdown: scores, differences, alignment by layer, cost, origin.

TrialResult of each arm and seed -> statistics.py -> tables whose columns are aligned, for readers of plain text, too
"""

from collections.abc import Iterator, Sequence

from ufork.analysis.ablation.layer_curves import MUTUAL_NEIGHBOURS, alignment_curve
from ufork.analysis.ablation.statistics import (
    Difference,
    Estimate,
    arms_of,
    differences,
    estimate,
    estimates,
    score_names,
)
from ufork.analysis.ablation.trial_result import ResultError, TrialResult, trial_name
from ufork.markdown import as_text
from ufork.vocabulary import Task

LEAST_P = 0.001
"""Smallest p value that is shown as it is."""
UNKNOWN = "–"
"""Cell without a value."""
ALIGNMENT_NOTE = (
    "Mutual nearest neighbours of image and text features at the end of training, less those of permuted pairs"
    " (docs/alignment.md): mean ± standard error over seeds. Layer 0 is the input of the first layer."
)


def ablation_tables(suite: str, results: Sequence[TrialResult], *, num_trials: int, baselines: Sequence[str]) -> str:
    """Returns a page of Markdown: scores, differences from each baseline, cost, and what the results were made with.

    Args:
        suite: name of the suite.
        results: of its trials, as far as they are done.
        num_trials: trials of the whole suite.
        baselines: arms that the others are compared with.
    """
    sections = [f"# {suite}", f"{len(results)} of {num_trials} results."]
    if results:
        sections += ["## Scores", "Mean ± standard error over seeds.", _score_table(results)]
        tests = {name: differences(results, name) for name in baselines}
        for baseline, found in tests.items():
            if found:
                sections += [f"## Difference from {baseline}", _difference_table(results, found)]
        if num_tests := sum(each.estimate.p is not None for found in tests.values() for each in found):
            sections.append(
                "Paired by seed: mean ± standard error, and the p value of a two-sided paired t-test. Of the"
                f" {num_tests} tests here, one in twenty has a p value below 0.05 by chance alone."
            )
        if aligned := _alignment_rows(results):
            sections += ["## Alignment by layer", ALIGNMENT_NOTE, markdown_table(aligned)]
        sections += ["## Cost", _cost_table(results), "\n".join(_origins(results))]
    return "\n\n".join(sections) + "\n"


def _score_table(results: Sequence[TrialResult]) -> str:
    names = score_names(results)
    rows = [["arm", "seeds", *_headings(results)]]
    for arm in arms_of(results):
        found = estimates(results, arm)
        num_seeds = sum(result.arm == arm for result in results)
        rows.append([arm, str(num_seeds), *(found[name].describe() if name in found else UNKNOWN for name in names)])
    return markdown_table(rows)


def _headings(results: Sequence[TrialResult]) -> list[str]:
    scores = {score.name: score for result in results for score in result.scores}
    named = [scores[name] for name in score_names(results)]
    return [f"{each.name} ({each.measure}{'' if each.higher_is_better else ', lower is better'})" for each in named]


def _difference_table(results: Sequence[TrialResult], found: Sequence[Difference]) -> str:
    cells = {(each.arm, each.score): each.estimate for each in found}
    names = [name for name in score_names(results) if any(each.score == name for each in found)]
    rows = [["arm", *names]]
    for arm in dict.fromkeys(each.arm for each in found):
        rows.append([arm, *(_difference_cell(cells.get((arm, name))) for name in names)])
    return markdown_table(rows)


def _difference_cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return UNKNOWN
    p = estimate.p
    shown = "" if p is None else f", p {p:.3f}" if p >= LEAST_P else f", p < {LEAST_P}"
    return estimate.describe(signed=True) + shown


def _alignment_rows(results: Sequence[TrialResult]) -> list[list[str]]:
    """Returns the head and a row per arm and task whose alignment was measured; nothing if none was."""
    rows = []
    for arm in arms_of(results):
        for task in Task:
            curves = [curve for result in results if result.arm == arm and (curve := _excess_alignment(result, task))]
            if layers := _layers(curves, where=arm):
                rows.append([arm, str(task), *(estimate(values).describe() for values in layers)])
    if not rows:
        return []
    width = max(map(len, rows))
    head = ["arm", "path", *(str(layer) for layer in range(width - 2))]
    return [head, *(row + [UNKNOWN] * (width - len(row)) for row in rows)]


def _excess_alignment(result: TrialResult, task: Task) -> list[float]:
    measured = alignment_curve(result, MUTUAL_NEIGHBOURS, task)
    permuted = alignment_curve(result, MUTUAL_NEIGHBOURS, task, of_permuted=True)
    where = trial_name(result.arm, result.seed)
    return [score - chance for score, chance in _layers([measured, permuted], where=where)]


def _layers(curves: Sequence[Sequence[float]], *, where: str) -> list[tuple[float, ...]]:
    """Returns the values of all curves, layer by layer."""
    if len({len(curve) for curve in curves}) > 1:
        raise ResultError(f"{where}: probes: not all curves of alignment have the same layers; run these trials again")
    return list(zip(*curves, strict=True))


def _cost_table(results: Sequence[TrialResult]) -> str:
    costs = {result.arm: result.cost for result in results}
    tasks = [task for task in Task if any(task in cost.active_parameters for cost in costs.values())]
    head = [*(f"parameters active in {task}" for task in tasks), "parameters in total"]
    rows = [["arm", *head, *(f"training TFLOPs of {task}" for task in tasks)]]
    for arm, cost in costs.items():
        active = [f"{number:,}" if (number := cost.active_parameters.get(task)) else UNKNOWN for task in tasks]
        flops = [f"{number / 1e12:.3g}" if (number := cost.training_flops.get(task)) else UNKNOWN for task in tasks]
        rows.append([arm, *active, f"{cost.total_parameters:,}", *flops])
    return markdown_table(rows)


def _origins(results: Sequence[TrialResult]) -> Iterator[str]:
    commits = sorted({result.commit or "unknown" for result in results})
    yield f"- commits: {as_text(', '.join(commits))}"
    yield f"- machines: {as_text('; '.join(sorted({result.machine for result in results})))}"
    torch = sorted({result.versions.get("torch", "unknown") for result in results})
    yield f"- torch: {as_text(', '.join(torch))}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table whose first row is its head, with cells padded so that it reads well as plain text."""
    rows = [[as_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([head, rule, *body])
