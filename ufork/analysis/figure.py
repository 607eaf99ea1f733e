"""Figures by matplotlib, which is in the extra `analysis` and is imported when a figure is drawn.

sizes -> an empty Figure -> drawn on by its module -> PNG; the same figure gives the same bytes
"""

import io
from typing import TYPE_CHECKING

from ufork.errors import ConfigError
from ufork.vocabulary import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK_COLOURS = {Task.UNDERSTANDING: "tab:red", Task.GENERATION: "tab:blue"}
"""As in the paper's figures."""
DOTS_PER_INCH = 120


def new_figure(*, width_inches: float, height_inches: float) -> "Figure":
    """Returns an empty figure.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("figures need matplotlib, which is not installed; pip install 'ufork[analysis]'") from None
    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def png_of(figure: "Figure") -> bytes:
    """Returns the PNG of a figure; names in it are shown as they are, and only numbers at the axes as formulas."""
    from matplotlib.text import Text

    axes = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    numbers = {text for axis in axes for text in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        if text not in numbers:
            text.set_parse_math(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return file.getvalue()
