"""Size of the scenes benchmark, of the emoji benchmark, and fitting of the detector that scores drawings."""

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from ufork.config import Config


class DetectorConfig(Config):
    """The small network that detects what a drawing shows, fitted on real renders of the training split."""

    max_images: PositiveInt = 12_000
    """Real renders read from the training shards, at most."""
    steps: PositiveInt = 300
    """Optimizer steps; the learning rate's schedule spans them."""
    batch_images: int = Field(default=64, ge=1, le=2**16)
    """Images per step."""
    learning_rate: float = Field(default=3e-3, gt=0, le=1e9)
    """Peak of the one-cycle schedule (AdamW)."""
    width: int = Field(default=64, ge=1, le=4096)
    """Channels at the grid's resolution; also the size of the features that the Fréchet distance compares."""
    noise: NonNegativeFloat = 0.06
    """Largest standard deviation of the noise added to training images, with pixels scaled to [0, 1]."""
    blurred_share: float = Field(default=0.3, ge=0, le=1)
    """Share of training images that are blurred: drawings come out of an image tokenizer and are never crisp."""
    recoloured_share: float = Field(default=0.3, ge=0, le=1)
    """Share of training images whose colour channels are mixed at random, so that kinds are recognised by shape;
    colours and backgrounds are not learned from these."""
    shuffled_share: float = Field(default=0.15, ge=0, le=1)
    """Share of training images whose cells are shuffled, so that fragments of a sprite do not count as an object."""
    presence_threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability above which a cell counts as holding an object."""
    seed: NonNegativeInt | None = None
    """Seed of the fit; `run.seed` by default. Runs whose drawings are compared are scored by one detector."""


class ScenesBenchmarkConfig(Config):
    """The six skills on held-out scenes."""

    questions_per_skill: PositiveInt = 100
    """Held-out questions asked per skill; fewer where the split has fewer."""
    drawings_per_skill: PositiveInt = 50
    """Held-out prompts drawn per skill; fewer where the split has fewer."""
    detector: DetectorConfig = DetectorConfig()
    """Detector that scores drawings."""


class EmojiBenchmarkConfig(Config):
    """Emoji of concepts that training never showed."""

    questions: NonNegativeInt = 200
    """Held-out questions asked."""
    drawings: NonNegativeInt = 12
    """Emoji drawn for the report; they are not scored."""
