"""Selection of benchmarks, number of samples, and options of drawing and answering."""

from pydantic import NonNegativeInt, PositiveInt

from ufork.config import Config
from ufork.eval.scenes.config import EmojiBenchmarkConfig, ScenesBenchmarkConfig
from ufork.infer.config import AnswerConfig, DrawConfig


class HeldoutConfig(Config):
    """The loss of held-out samples, for data of any kind."""

    folders: tuple[str, ...] | None = None
    """Source folders of held-out samples, with codes or images, relative to the run's folder. Default: those that
    `codes/*/heldout` matches, or `shards/*/heldout` if none is encoded."""
    samples_per_source: PositiveInt = 200
    """Samples per source folder and task, at most."""


class EvaluateConfig(Config):
    """One evaluation. A benchmark runs where its section is not null and its data exists."""

    scenes: ScenesBenchmarkConfig | None = ScenesBenchmarkConfig()
    """Six skills on held-out scenes; needs `prepare.scenes`."""
    emoji: EmojiBenchmarkConfig | None = EmojiBenchmarkConfig()
    """Held-out emoji; needs `prepare.emoji`."""
    heldout: HeldoutConfig | None = HeldoutConfig()
    """Loss of held-out samples of any source."""
    examples_per_group: NonNegativeInt = 6
    """Answers and drawings per skill that the report shows."""
    draw: DrawConfig = DrawConfig()
    """Sampling of drawings; each case has its own seed, derived from `draw.seed` and the case's id."""
    answer: AnswerConfig = AnswerConfig()
    """Decoding of answers."""
