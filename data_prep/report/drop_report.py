"""The report of a collection that was made into shards: what was dropped and why, and what the samples are like.

    Selection, Statistics  ->  folder/report.json  ->  as_text: for a terminal, or folder/report.html: one page

The page needs no other file and no network.
"""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from data_prep.report.selection import Selection
from data_prep.report.statistics import TABLES, Statistics
from ufork.errors import ShardError
from ufork.files import write_whole
from ufork.report.page import page, panel, tile, track

REPORT_FILE = "report.json"
PAGE_FILE = "report.html"

_VERSION = 1
_WRAPPED = "white-space:normal;overflow-wrap:anywhere;min-width:18rem;width:50%"
_TEXT_EXAMPLES = 2
_TEXT_EXAMPLE_CHARS = 30


def save_report(folder: Path, selection: Selection, statistics: Statistics) -> None:
    """Writes `report.json` into `folder`.

    Raises:
        StorageError: it cannot be written.
    """
    values = {"version": _VERSION, "records": selection.to_dict(), "samples": statistics.to_dict()}
    write_whole(folder / REPORT_FILE, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def load_report(folder: Path) -> tuple[Selection, Statistics]:
    """Reads the `report.json` in `folder`.

    Raises:
        ShardError: there is none, or it is not one of this version.
    """
    path = folder / REPORT_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["version"] != _VERSION:
            raise ShardError(f"{path}: version {values['version']}, expected {_VERSION}; make the shards again")
        return Selection.from_dict(values["records"]), Statistics.from_dict(values["samples"])
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}); give a folder of finished shards") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: not a report of ufork's ({error!r}); make the shards again") from None


def write_report(folder: Path, title: str) -> Path:
    """Writes `report.html`, headed by `title`, from the `report.json` in `folder` and returns its path.

    Raises:
        ShardError: as `load_report` does.
        StorageError: it cannot be written.
    """
    selection, statistics = load_report(folder)
    html = page(
        title,
        "What was made into shards, and what was left out",
        sections=[("Left out", _dropped(selection)), ("Samples", _samples(statistics))],
        head=_tiles(selection, statistics),
        footer="Made by ufork.",
    )
    write_whole(folder / PAGE_FILE, html)
    return folder / PAGE_FILE


def as_text(selection: Selection, statistics: Statistics) -> str:
    """The same figures for a terminal."""
    blocks = [_text_table(_headline(selection), _text_reasons(selection))]
    for name, table in TABLES.items():
        rows = [
            (label, f"{number:,}", _share(number, statistics.num_samples)) for label, number in statistics.rows(name)
        ]
        if rows:
            blocks.append(_text_table(f"{table.title}: samples", rows))
    return "\n".join(blocks)


def _headline(selection: Selection) -> str:
    share = _share(selection.kept, selection.num_records)
    return f"{selection.kept:,} of {selection.num_records:,} records kept, {share}; left out:"


def _text_reasons(selection: Selection) -> Sequence[tuple[str, ...]]:
    rows = []
    for reason, number, names in _reasons(selection):
        named = ", ".join(_cut(name, _TEXT_EXAMPLE_CHARS) for name in names[:_TEXT_EXAMPLES])
        rows.append((reason, f"{number:,}", _share(number, selection.num_records), named))
    return rows


def _text_table(title: str, rows: Sequence[tuple[str, ...]]) -> str:
    """Left, right, right, left aligned columns below a title."""
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = [title]
    for label, number, share, *rest in rows:
        lines.append(f"  {label:{widths[0]}}  {number:>{widths[1]}}  {share:>{widths[2]}}  {''.join(rest)}".rstrip())
    return "\n".join(lines) + "\n"


def _reasons(selection: Selection) -> list[tuple[str, int, list[str]]]:
    return [(row["reason"], row["records"], row["examples"]) for row in selection.to_dict()["dropped"]]


def _tiles(selection: Selection, statistics: Statistics) -> str:
    kept, records = selection.kept, selection.num_records
    tasks = ", ".join(f"{number:,} {name}" for name, number in statistics.rows("task"))
    images = sum(number for _, number in statistics.rows("format"))
    mean_bytes = statistics.image_bytes / images if images else 0
    mean_chars = statistics.text_chars / statistics.num_samples if statistics.num_samples else 0
    tiles = [
        tile("Records kept", _share(kept, records), f"{kept:,} of {records:,}", share=kept / records if records else 0),
        tile("Samples", f"{statistics.num_samples:,}", tasks),
        tile("Images", _bytes(statistics.image_bytes), f"{images:,} files of {_bytes(mean_bytes)} on average"),
        tile("Text", f"{mean_chars:.0f}", "characters a sample on average"),
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _dropped(selection: Selection) -> str:
    if not selection.dropped:
        return "<p>Nothing was left out.</p>"
    rows = "".join(
        f'<tr><td>{escape(reason)}</td><td class="number">{number:,}</td>'
        f'<td class="number">{_share(number, selection.num_records)}</td>'
        f'<td class="bar" style="width:20%">{track(number / selection.num_records, colour="--bad")}</td>'
        f'<td class="muted" style="{_WRAPPED}">{"<br>".join(map(escape, names))}</td></tr>'
        for reason, number, names in _reasons(selection)
    )
    head = '<tr><th>Why</th><th class="number">Records</th><th class="number">Share</th><th></th><th>Such as</th></tr>'
    return f'<div class="card scroll"><table>{head}{rows}</table></div>'


def _samples(statistics: Statistics) -> str:
    panels = [_panel(table.title, statistics.rows(name), statistics.num_samples) for name, table in TABLES.items()]
    return f'<div class="grid losses">{"".join(panels)}</div>'


def _panel(title: str, rows: list[tuple[str, int]], total: int) -> str:
    if not rows:
        return ""
    cells = "".join(
        f'<tr><td>{escape(label)}</td><td class="bar">{track(number / total, colour="--muted")}</td>'
        f'<td class="number">{number:,}</td><td class="number">{_share(number, total)}</td></tr>'
        for label, number in rows
    )
    return panel(title, f'<div class="scroll"><table>{cells}</table></div>')


def _share(number: int, total: int) -> str:
    return f"{number / total:.1%}" if total else "–"


def _bytes(number: float) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} bytes"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
