"""Contact sheet of a finished source: one picture with samples from all of its shards and their texts.

    source folder  ->  evenly spaced samples of each task  ->  cells: thumbnail, task, text  ->  one PNG

Thumbnails are decoded as in training: padded for understanding, cropped for generation.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ufork.data.shards.manifest import Manifest
from ufork.data.shards.sample import Sample
from ufork.data.shards.source import ShardSource
from ufork.errors import SampleError
from ufork.files import make_folder, whole_file
from ufork.vision.images import decode_image
from ufork.vocabulary import Task

NUM_SAMPLES = 64

_COLUMNS = 8
_THUMBNAIL_PX = 176
_MARGIN_PX, _HEADER_PX, _GAP_PX, _PADDING_PX = 28, 72, 14, 8
_TEXT_PX, _TITLE_PX, _LINE_PX = 13, 24, 17
_LINES = 8
"""Lines of text per cell; a question and its answer get half of them each."""

_MAX_CHARS = 400
"""Characters of a text that are used; longer texts do not fit into the lines."""

_PAPER, _CARD, _EDGE, _INK, _MUTED, _BAD = "#f6f7f9", "#ffffff", "#e2e6eb", "#18212c", "#5b6774", "#c0392b"
_TASK_COLOURS = {Task.UNDERSTANDING: "#2f66d0", Task.GENERATION: "#c9621a"}
"""Colours of the tasks, the same as in ufork's reports."""


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """Contents of one sample's cell."""

    task: Task
    picture: np.ndarray | None
    """uint8 [_THUMBNAIL_PX, _THUMBNAIL_PX, 3]; None to show `notice` instead."""
    notice: str
    lines: list[tuple[str, str]]
    """(line of text, its colour)."""
    note: str = ""
    """Text at the right of the task."""

    @property
    def height_px(self) -> int:
        """Height including the border."""
        return _THUMBNAIL_PX + 3 * _PADDING_PX + _LINE_PX * (len(self.lines) + 1)


def write_contact_sheet(folder: Path, out: Path) -> None:
    """Writes a PNG with NUM_SAMPLES samples of a source folder, or with all samples if there are fewer.

    Cells of samples that have codes only, or cannot be read or decoded, show a notice instead of a picture.

    Raises:
        ShardError: the source is unfinished, or a shard is missing or damaged.
        StorageError: `out` cannot be written.
    """
    manifest = Manifest.load(folder)
    sources = [ShardSource(folder, task) for task in Task if manifest.num_samples(task)]
    numbers = _spread(sum(len(source) for source in sources), NUM_SAMPLES)
    cells, start = [], 0
    for source in sources:
        chosen = [number - start for number in numbers if start <= number < start + len(source)]
        cells += [_cell(source, sample) for sample in source.read(chosen)]
        start += len(source)
    sheet = _drawn(cells, f"{manifest.source} / {manifest.split}", _summary(manifest, len(cells)))
    make_folder(out.parent)
    with whole_file(out) as file:
        sheet.save(file, "PNG")


def _spread(total: int, wanted: int) -> list[int]:
    """Returns at most `wanted` evenly spaced numbers below `total`: the middles of `wanted` equal intervals."""
    if total <= wanted:
        return list(range(total))
    return [(2 * interval + 1) * total // (2 * wanted) for interval in range(wanted)]


def _summary(manifest: Manifest, shown: int) -> str:
    counts = {task: manifest.num_samples(task) for task in Task}
    tasks = ", ".join(f"{count:,} {task}" for task, count in counts.items() if count)
    total = f"{shown} of {sum(counts.values()):,} samples ({tasks})"
    return f"{total}, evenly spaced over {len(manifest.shards):,} shards. {manifest.licence}"


def _cell(source: ShardSource, sample: Sample | SampleError) -> _Cell:
    task = source.task
    if isinstance(sample, SampleError):
        message = str(sample).removeprefix(f"{source.storage.where('')}/")
        return _Cell(task=task, picture=None, notice="cannot be read", lines=_lines(message, _BAD, _LINES))
    picture, notice = None, "cannot be decoded"
    if sample.codes is not None:
        notice = f"codes, no picture\n{' x '.join(map(str, sample.codes.shape))}"
    elif sample.image is not None:
        with suppress(SampleError):
            picture = decode_image(sample.image, size_px=_THUMBNAIL_PX, purpose=task)
    lines, note = _lines(sample.prompt, _INK, _LINES), ""
    if sample.turns:
        question, answer = sample.turns[0]
        lines = _lines(question, _MUTED, _LINES // 2) + _lines(answer, _INK, _LINES // 2)
        note = f"1 of {len(sample.turns)} turns" if len(sample.turns) > 1 else ""
    return _Cell(task=task, picture=picture, notice=notice, lines=lines, note=note)


def _lines(text: str, colour: str, limit: int) -> list[tuple[str, str]]:
    """Wraps a text to the thumbnail's width, breaking long words, and truncates it after `limit` lines."""
    lines = [""]
    for word in text[:_MAX_CHARS].split():
        for piece in _broken(word):
            joined = f"{lines[-1]} {piece}".lstrip()
            if _font().getlength(joined) <= _THUMBNAIL_PX:
                lines[-1] = joined
            else:
                lines.append(piece)
    if len(lines) > limit:
        lines[limit - 1 :] = [f"{lines[limit - 1][:-1]}…"]
    return [(line, colour) for line in lines]


def _broken(word: str) -> list[str]:
    pieces = [""]
    for letter in word:
        if _font().getlength(pieces[-1] + letter) > _THUMBNAIL_PX:
            pieces.append("")
        pieces[-1] += letter
    return pieces


@cache
def _font(size_px: int = _TEXT_PX) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


def _drawn(cells: list[_Cell], title: str, summary: str) -> Image.Image:
    rows = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
    heights = [max(cell.height_px for cell in row) for row in rows]
    column_px = _THUMBNAIL_PX + 2 * _PADDING_PX + _GAP_PX
    width = 2 * _MARGIN_PX + _COLUMNS * column_px - _GAP_PX
    sheet = Image.new("RGB", (width, _HEADER_PX + 2 * _MARGIN_PX + sum(heights) + _GAP_PX * (len(rows) - 1)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN_PX, _MARGIN_PX), title, _INK, _font(_TITLE_PX))
    pen.text((_MARGIN_PX, _MARGIN_PX + 36), summary, _MUTED, _font())
    top = _MARGIN_PX + _HEADER_PX
    for row, height in zip(rows, heights, strict=True):
        for number, cell in enumerate(row):
            left = _MARGIN_PX + number * column_px
            box = (left, top, left + _THUMBNAIL_PX + 2 * _PADDING_PX, top + height)
            pen.rounded_rectangle(box, radius=8, fill=_CARD, outline=_EDGE)
            _draw_cell(sheet, cell, left + _PADDING_PX, top + _PADDING_PX)
        top += height + _GAP_PX
    return sheet


def _draw_cell(sheet: Image.Image, cell: _Cell, left: int, top: int) -> None:
    pen, middle, right = ImageDraw.Draw(sheet), _THUMBNAIL_PX // 2, left + _THUMBNAIL_PX
    if cell.picture is not None:
        sheet.paste(Image.fromarray(cell.picture), (left, top))
    else:
        pen.rectangle((left, top, right - 1, top + _THUMBNAIL_PX - 1), _PAPER)
        pen.text((left + middle, top + middle), cell.notice, _MUTED, _font(), anchor="mm", align="center")
    pen.rectangle((left, top, right - 1, top + _THUMBNAIL_PX - 1), outline=_EDGE)
    top += _THUMBNAIL_PX + _PADDING_PX
    pen.text((left, top), cell.task, _TASK_COLOURS[cell.task], _font())
    pen.text((right, top), cell.note, _MUTED, _font(), anchor="ra")
    for number, (line, colour) in enumerate(cell.lines, start=1):
        pen.text((left, top + number * _LINE_PX), line, colour, _font())
