"""Report of a sharded collection: dropped records with the reasons, and statistics of the samples.

    Selection, Statistics  ->  folder/report.json  ->  as_text: for the terminal
                                                   ->  folder/report.html: one page that needs no other file
    Selection without a kept record  ->  nothing_kept: the error that ends the command

The templates of the page are in templates/.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from data_prep.report.selection import Selection
from data_prep.report.statistics import TABLES, Statistics
from ufork.errors import InputError, ShardError
from ufork.files import write_whole
from ufork.report.page import page, render

REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"

_VERSION = 1
_TEXT_EXAMPLES = 2
_TEXT_EXAMPLE_CHARS = 60


def save_report(folder: Path, selection: Selection, statistics: Statistics) -> None:
    """Writes `report.json` into `folder`.

    Raises:
        StorageError: the file cannot be written.
    """
    values = {"version": _VERSION, "records": selection.to_dict(), "samples": statistics.to_dict()}
    write_whole(folder / REPORT_FILE, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def load_report(folder: Path) -> tuple[Selection, Statistics]:
    """Reads the `report.json` in `folder`.

    Raises:
        ShardError: the file is missing, damaged, or of another version.
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
        raise ShardError(f"{path}: not a report of ufork ({error!r}); make the shards again") from None


def write_report(folder: Path, title: str) -> Path:
    """Writes `report.html` with the heading `title` from the `report.json` in `folder`; returns its path.

    Raises:
        ShardError: as `load_report`.
        StorageError: the page cannot be written.
    """
    selection, statistics = load_report(folder)
    html = page(
        title,
        "Records that were kept or dropped, and the samples made from them",
        sections=[("Dropped records", _dropped(selection)), ("Samples", _samples(statistics))],
        head=render("head.html.j2", tiles=_tiles(selection, statistics)),
        footer="Made by ufork.",
    )
    write_whole(folder / PAGE_FILE, html)
    return folder / PAGE_FILE


def as_text(selection: Selection, statistics: Statistics) -> str:
    """Returns the figures of the report as text for the terminal; the last lines say what was dropped and why."""
    blocks = []
    for name, table in TABLES.items():
        rows = [
            (label, f"{number:,}", _share(number, statistics.num_samples)) for label, number in statistics.rows(name)
        ]
        if rows:
            blocks.append(_text_table(f"{table.title}: samples", rows))
    share = _share(selection.kept, selection.num_records)
    headline = f"{selection.kept:,} of {selection.num_records:,} records kept, {share}"
    headline += "; dropped:" if selection.dropped else ""
    return "\n".join([*blocks, "\n".join([headline, *_text_reasons(selection)])])


def nothing_kept(selection: Selection, where: object) -> InputError:
    """Returns the error for a collection of which no record could be kept; it names the reasons."""
    if not selection.num_records:
        return InputError(f"{where}: the collection has no entry; check the path, and the kind of collection")
    headline = f"{where}: no record could be kept; all {selection.num_records:,} were dropped:"
    return InputError("\n".join([headline, *_text_reasons(selection)]))


def _text_reasons(selection: Selection) -> list[str]:
    """Returns two lines for each reason: number, share and reason, then the first ids."""
    lines = []
    for reason, number, names in _reasons(selection):
        counted = f"  {number:>{len(f'{selection.num_records:,}')},}  {_share(number, selection.num_records):>6}  "
        named = ", ".join(_cut(name, _TEXT_EXAMPLE_CHARS) for name in names[:_TEXT_EXAMPLES])
        lines += [counted + reason, " " * len(counted) + named]
    return lines


def _text_table(title: str, rows: Sequence[tuple[str, str, str]]) -> str:
    """Formats a title and a table with columns aligned left, right, right."""
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"  {label:{widths[0]}}  {number:>{widths[1]}}  {share:>{widths[2]}}" for label, number, share in rows]
    return "\n".join([title, *lines]) + "\n"


def _reasons(selection: Selection) -> list[tuple[str, int, list[str]]]:
    return [(entry["reason"], entry["records"], entry["examples"]) for entry in selection.to_dict()["dropped"]]


def _tiles(selection: Selection, statistics: Statistics) -> list[dict[str, Any]]:
    kept, records = selection.kept, selection.num_records
    tasks = ", ".join(f"{number:,} {name}" for name, number in statistics.rows("task"))
    images = sum(number for _, number in statistics.rows("format"))
    mean_bytes = statistics.image_bytes / images if images else 0
    mean_chars = statistics.text_chars / statistics.num_samples if statistics.num_samples else 0
    share = kept / records if records else 0
    tiles = [
        ("Records kept", _share(kept, records), f"{kept:,} of {records:,}", share),
        ("Samples", f"{statistics.num_samples:,}", tasks, None),
        ("Images", _bytes(statistics.image_bytes), f"{images:,} files of {_bytes(mean_bytes)} on average", None),
        ("Text", f"{mean_chars:.0f}", "characters per sample on average", None),
    ]
    return [
        {"label": label, "figure": figure, "note": note, "share": bar, "colour": "ink"}
        for label, figure, note, bar in tiles
    ]


def _dropped(selection: Selection) -> Markup:
    rows = [
        {"reason": reason, "examples": names, **_counted(number, selection.num_records)}
        for reason, number, names in _reasons(selection)
    ]
    return render("dropped.html.j2", folder=TEMPLATES, rows=rows)


def _samples(statistics: Statistics) -> Markup:
    panels = [
        (table.title, [{"label": label, **_counted(number, statistics.num_samples)} for label, number in rows])
        for name, table in TABLES.items()
        if (rows := statistics.rows(name))
    ]
    return render("samples.html.j2", folder=TEMPLATES, panels=panels)


def _counted(number: int, total: int) -> dict[str, Any]:
    return {"number": f"{number:,}", "share": number / total if total else 0, "share_text": _share(number, total)}


def _share(number: int, total: int) -> str:
    return f"{number / total:.1%}" if total else "–"


def _bytes(number: float) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} bytes"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
