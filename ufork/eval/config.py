"""What an evaluation measures, on how many held-out samples, and how its judge (the detector) is fitted."""

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ufork.config import Config
from ufork.infer.config import AnswerConfig, DrawConfig


class DetectorConfig(Config):
    """The small network that tells what a picture shows, fitted on real renders of the training split."""

    max_images: PositiveInt = 12_000
    """Real renders read from the training shards; more are left unread."""
    steps: PositiveInt = 300
    """Optimizer steps; the learning rate's schedule spans them."""
    batch_images: PositiveInt = 64
    """Images per step."""
    learning_rate: PositiveFloat = 3e-3
    """Peak of the one-cycle schedule (AdamW)."""
    width: PositiveInt = 64
    """Channels at the grid's resolution; also the width of the features that the Fréchet distance compares."""
    noise: NonNegativeFloat = 0.06
    """Largest standard deviation of the noise put on training images, pixels counted from 0 to 1."""
    blurred_share: float = Field(default=0.3, ge=0, le=1)
    """Share of training images that are blurred: a drawing comes out of an image tokenizer and is never crisp."""
    recoloured_share: float = Field(default=0.3, ge=0, le=1)
    """Share of training images whose colour channels are mixed at random, so that a kind is told by its shape; nothing
    is learned of colours and backgrounds there."""
    shuffled_share: float = Field(default=0.15, ge=0, le=1)
    """Share of training images whose cells are dealt out anew, so that fragments of a sprite do not count as one."""
    presence_threshold: float = Field(default=0.5, gt=0, lt=1)
    """An object is there where the network's probability is above this."""


class EvaluateConfig(Config):
    """One evaluation: held-out questions answered, held-out prompts drawn."""

    questions_per_skill: PositiveInt = 100
    """Held-out questions asked for each skill, fewer where the split has fewer."""
    drawings_per_skill: PositiveInt = 50
    """Held-out prompts drawn for each skill, fewer where the split has fewer."""
    examples_per_skill: PositiveInt = 6
    """Answers and drawings per skill that are kept as pictures for the report."""
    emoji_questions: NonNegativeInt = 200
    """Held-out questions asked about emoji of unseen concepts; 0 leaves the source out."""
    emoji_drawings: NonNegativeInt = 12
    """Emoji of unseen concepts drawn for the report; nothing judges them."""
    draw: DrawConfig = DrawConfig()
    """How drawings are sampled."""
    answer: AnswerConfig = AnswerConfig()
    """How answers are decoded."""
    detector: DetectorConfig = DetectorConfig()
    """The judge of drawings."""
