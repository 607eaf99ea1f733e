"""Renders findings as one page for a terminal, and as plain values for JSON."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipelines.doctor.finding import Finding, Mark
from pipelines.terminal import printable

WIDTH = 100
INDENT, MARK_WIDTH = 2, 9
COLOURS = {Mark.OK: 32, Mark.ABSENT: 33, Mark.PROBLEM: 31, Mark.SLOW: 33}
"""Colour codes of terminals (ECMA-48): green, yellow, red."""


def render(findings: Mapping[str, Sequence[Finding]], *, title: str, colour: bool) -> str:
    """Returns the page, at most `WIDTH` columns wide."""
    every = [finding for group in findings.values() for finding in group]
    name_width = max(len(finding.name) for finding in every) + 2
    blocks = [
        "\n".join([section, *(_entry(finding, name_width, colour) for finding in group)])
        for section, group in findings.items()
    ]
    return "\n\n".join([printable(title), *blocks, _summary(every)])


def _entry(finding: Finding, name_width: int, colour: bool) -> str:
    margin = " " * (INDENT + MARK_WIDTH + name_width)
    mark = f"{finding.mark:{MARK_WIDTH}}"
    texts = [("", finding.found), ("ufork ", finding.instead), ("to fix it: ", finding.remedy)]
    lines = [line for lead, text in texts if text for line in _wrapped(lead, text, WIDTH - len(margin))]
    start = " " * INDENT + (f"\033[{COLOURS[finding.mark]}m{mark}\033[0m" if colour else mark)
    name = printable(finding.name)
    return "\n".join([f"{start}{name:{name_width}}{lines[0]}", *(margin + line for line in lines[1:])])


def _wrapped(lead: str, text: str, width: int) -> list[str]:
    lines = textwrap.wrap(lead + text, width, subsequent_indent=" " * 2, break_on_hyphens=False, break_long_words=False)
    return [printable(line) for line in lines]


def _summary(findings: Sequence[Finding]) -> str:
    broken = [finding.name for finding in findings if finding.breaks]
    if broken:
        return f"ufork cannot run here until this is fixed: {', '.join(broken)}"
    counts = {mark: sum(finding.mark is mark for finding in findings) for mark in Mark}
    slow = f", {counts[Mark.SLOW]} timed out" if counts[Mark.SLOW] else ""
    return f"ufork runs here: {counts[Mark.ABSENT]} absent, {counts[Mark.PROBLEM]} to look at{slow}"


def as_values(findings: Mapping[str, Sequence[Finding]]) -> dict[str, list[dict[str, Any]]]:
    """Returns the same as plain values: for each section, a mapping per finding."""
    return {section: [asdict(finding) for finding in group] for section, group in findings.items()}
