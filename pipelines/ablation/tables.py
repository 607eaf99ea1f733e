"""Tables and figures of a suite, from its result files.

RESULTS/*.json -> RESULTS/table.md, learning_curves.png, fork_depth.png, layers.png
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from pipelines.ablation.suite import Suite
from ufork.analysis.ablation.figures import draw_fork_depth, draw_learning_curves
from ufork.analysis.ablation.layer_figure import draw_layers
from ufork.analysis.ablation.tables import ablation_tables
from ufork.analysis.ablation.trial_result import TrialResult
from ufork.analysis.figure import png_of
from ufork.errors import ConfigError
from ufork.files import make_folder, write_whole

TABLE, LEARNING_CURVES, FORK_DEPTH, LAYERS = "table.md", "learning_curves.png", "fork_depth.png", "layers.png"

log = logging.getLogger(__name__)


def write_tables(suite: Suite, results: Sequence[TrialResult], folder: Path) -> str:
    """Writes the table, and the figures where matplotlib is installed; returns the table.

    Raises:
        StorageError: `folder` cannot be written.
    """
    config = suite.config
    text = ablation_tables(config.name, results, num_trials=len(suite.trials), baselines=config.baselines)
    make_folder(folder, choose="another --results")
    write_whole(folder / TABLE, text, choose="another --results")
    drawings = {LEARNING_CURVES: draw_learning_curves, FORK_DEPTH: draw_fork_depth, LAYERS: draw_layers}
    for name, draw in drawings.items() if results else ():
        try:
            write_whole(folder / name, png_of(draw(results)), choose="another --results")
        except ConfigError as error:
            log.warning("%s is not drawn: %s", folder / name, error)
    return text
