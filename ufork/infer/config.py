"""How drawings and answers are sampled."""

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ufork.config import Config


class DrawConfig(Config):
    """Sampling of image codes; the defaults are the release's (spec, section 6)."""

    guidance: NonNegativeFloat = 4.0
    """Classifier-free guidance: logits = unconditional + guidance * (conditional - unconditional); 1 turns it off."""
    temperature: PositiveFloat = 1.0
    top_k: NonNegativeInt = 900
    """Codes kept at each depth; 0 keeps all."""
    top_p: float = Field(default=0.96, gt=0, le=1)
    """Probability kept: the likeliest codes up to and including the one that crosses it."""
    seed: NonNegativeInt = 0
    batch_prompts: PositiveInt = 64
    """Prompts drawn at a time."""


class AnswerConfig(Config):
    """Greedy decoding of answers."""

    max_tokens: PositiveInt = 32
    """Longest answer."""
    batch_questions: PositiveInt = 64
    """Questions answered at a time."""
