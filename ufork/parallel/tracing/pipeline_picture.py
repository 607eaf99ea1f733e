"""A step of the pipeline as a picture: a lane per rank, time from left to right.

spans by lane -> boxes of passes, coloured by task; waits inside them pale -> image
"""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ufork.parallel.tracing.trace import Span
from ufork.vocabulary import Task

WIDTH, LANE_HEIGHT, LABEL_WIDTH, MARGIN = 1400, 44, 330, 16
BACKGROUND, INK, IDLE = (255, 255, 255), (40, 40, 40), (236, 236, 236)
PASS_COLOURS = {
    ("forward", Task.UNDERSTANDING): (96, 156, 222),
    ("backward", Task.UNDERSTANDING): (38, 92, 160),
    ("forward", Task.GENERATION): (244, 172, 84),
    ("backward", Task.GENERATION): (198, 104, 22),
}
OTHER_COLOURS = {
    "receive": (214, 214, 214),
    "gather": (170, 200, 170),
    "reduce": (140, 170, 140),
    "send": (196, 196, 220),
    "step": (110, 110, 110),
}


def draw_pipeline(lanes: Mapping[str, Sequence[Span]], *, begin: float, end: float) -> Image.Image:
    """Returns a picture of the time from `begin` to `end`, in seconds.

    Args:
        lanes: spans by the name of the rank, from top to bottom.
        begin: time at the left edge.
        end: time at the right edge; spans beyond it are cut.
    """
    height = 2 * MARGIN + LANE_HEIGHT * (len(lanes) + 1)
    image = Image.new("RGB", (WIDTH, height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)
    for number, (name, spans) in enumerate(lanes.items()):
        top = MARGIN + number * LANE_HEIGHT
        draw.text((MARGIN, top + 12), name, fill=INK, font=font)
        draw.rectangle((LABEL_WIDTH, top + 4, WIDTH - MARGIN, top + LANE_HEIGHT - 4), fill=IDLE)
        for span in sorted(spans, key=lambda span: span.start - span.end):  # the longest below those inside it
            _draw_span(draw, span, top, begin, end, font)
    _draw_legend(draw, MARGIN + len(lanes) * LANE_HEIGHT, end - begin, font)
    return image


def _draw_span(draw: ImageDraw.ImageDraw, span: Span, top: int, begin: float, end: float, font: Any) -> None:
    left, right = (_column(moment, begin, end) for moment in (span.start, span.end))
    if right <= left:
        return
    colour = _colour(span)
    draw.rectangle((left, top + 4, right - 1, top + LANE_HEIGHT - 4), fill=colour)
    number = span.name.rpartition(" ")[2]
    if span.kind in ("forward", "backward") and draw.textlength(number, font=font) < right - left - 2:
        draw.text((left + 2, top + 12), number, fill=BACKGROUND, font=font)


def _column(moment: float, begin: float, end: float) -> int:
    share = min(max((moment - begin) / (end - begin), 0.0), 1.0)
    return LABEL_WIDTH + round(share * (WIDTH - MARGIN - LABEL_WIDTH))


def _colour(span: Span) -> tuple[int, int, int]:
    if span.kind in OTHER_COLOURS:
        return OTHER_COLOURS[span.kind]
    return PASS_COLOURS[span.kind, Task(span.name.partition(" ")[0])]


def _draw_legend(draw: ImageDraw.ImageDraw, top: int, seconds: float, font: Any) -> None:
    left = LABEL_WIDTH
    named = {f"{task} {direction}": colour for (direction, task), colour in PASS_COLOURS.items()}
    for name, colour in {**named, "receive": OTHER_COLOURS["receive"], "gather": OTHER_COLOURS["gather"]}.items():
        draw.rectangle((left, top + 14, left + 12, top + 26), fill=colour)
        draw.text((left + 18, top + 12), name, fill=INK, font=font)
        left += 40 + int(draw.textlength(name, font=font))
    draw.text((MARGIN, top + 12), f"{seconds * 1e3:.0f} ms from left to right", fill=INK, font=font)
