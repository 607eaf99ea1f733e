"""The report's sections and tiles about an evaluation: BenchmarkRecord in, Markup out."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ufork.eval.record import BenchmarkRecord, Evaluation, Example, GroupScore
from ufork.report.charts import confusion_chart
from ufork.report.page import Pictures, render
from ufork.run_folder import RunFolder
from ufork.vocabulary import Task

MAX_CONFUSION_NAMES = 100
"""Confusions of more truths and answers are not drawn: nobody could read them, and their cells grow with the square."""
COLOURS = {Task.UNDERSTANDING: "understanding", Task.GENERATION: "generation"}


def benchmark_section(benchmark: BenchmarkRecord, run_folder: Path, pictures: Pictures) -> Markup:
    """Renders description, examples by group, tables, figures and confusion counts of one benchmark."""
    folder = RunFolder(run_folder).examples
    return render(
        "benchmark.html.j2",
        benchmark=benchmark,
        embed=lambda name: pictures.url(folder / name),
        drawings=_by_group(example for example in benchmark.examples if example.task is Task.GENERATION),
        answers=_by_group(example for example in benchmark.examples if example.task is Task.UNDERSTANDING),
        notes=_notes(benchmark),
        confusions=_confusions(benchmark),
        shows_chance=any(table.mean.normalised is not None for table in benchmark.tables),
    )


def benchmark_tiles(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Returns a tile with the mean over groups of every table."""
    tiles = []
    for benchmark in evaluation.benchmarks:
        for table in benchmark.tables:
            tile = {
                "label": f"{benchmark.title}: {table.title.lower()}",
                "figure": f"{table.mean.score:.2f}",
                "note": f"{table.measure}, mean over groups",
                "colour": COLOURS[table.task],
                "share": table.mean.score if table.is_share else None,
            }
            if (normalised := table.mean.normalised) is not None:
                top = "perfect" if table.mean.ceiling is None else "the ceiling"
                note = f"of the way from chance to {top}, mean over groups"
                tile |= {"figure": f"{normalised:.2f}", "note": note, "share": normalised}
            tiles.append(tile)
    return tiles


def _by_group(examples: Iterable[Example]) -> list[tuple[str, list[Example]]]:
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    return list(groups.items())


def _notes(benchmark: BenchmarkRecord) -> dict[str, dict[str, str]]:
    """Returns by task and group a line with the group's score."""
    notes: dict[str, dict[str, str]] = {str(task): {} for task in Task}
    for table in benchmark.tables:
        if table.is_share:
            for name, group in table.groups.items():
                chance = "" if group.chance is None else f", chance {group.chance:.0%}"
                notes[table.task][name] = f"{group.score:.0%} of {group.num_cases} {table.measure}{chance}"
    return notes


def _confusions(benchmark: BenchmarkRecord) -> list[tuple[str, Markup]]:
    return [
        (name, confusion_chart(group.confusion, label=f"{name}: answers by truth"))
        for table in benchmark.tables
        for name, group in table.groups.items()
        if any(any(row.values()) for row in group.confusion.values()) and _num_names(group) <= MAX_CONFUSION_NAMES
    ]


def _num_names(group: GroupScore) -> int:
    return len(group.confusion.keys() | {answer for row in group.confusion.values() for answer in row})
