"""Sampling of drawings and decoding of answers."""

from pydantic import Field, PositiveInt

from ufork.config import Config

MAX_SEED = 2**63 - 1
"""Largest seed; torch generators take 64 bits, and the seeds of a batch count up from the given one."""


class DrawConfig(Config):
    """Sampling of image codes; the defaults are the release's (spec, section 6)."""

    guidance: float = Field(default=4.0, ge=0, le=1000, allow_inf_nan=False)
    """Classifier-free guidance: logits = unconditional + guidance * (conditional - unconditional); 1 turns it off."""
    temperature: float = Field(default=1.0, ge=0, le=1000, allow_inf_nan=False)
    """Divides the logits; 0 takes the most likely code (greedy)."""
    top_k: int = Field(default=900, ge=0, le=2**31 - 1)
    """Codes kept at each depth; 0 keeps all."""
    top_p: float = Field(default=0.96, gt=0, le=1)
    """Probability mass kept: the most likely codes up to and including the one that reaches it."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the first prompt; prompt i has seed + i, unless the caller gives each its own."""
    batch_prompts: PositiveInt = 64
    """Prompts drawn at a time; does not change what is drawn."""


class AnswerConfig(Config):
    """Decoding of answers, by default greedy."""

    max_tokens: int = Field(default=32, ge=1, le=32_768)
    """Longest answer."""
    temperature: float = Field(default=0.0, ge=0, le=1000, allow_inf_nan=False)
    """Divides the logits; 0 takes the most likely token (greedy)."""
    top_k: int = Field(default=0, ge=0, le=2**31 - 1)
    """Tokens kept at each step; 0 keeps all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Probability mass kept, as for drawings."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the first question; question i has seed + i. Without effect at temperature 0."""
    batch_questions: PositiveInt = 64
    """Questions answered at a time."""


class EngineConfig(Config):
    """Sizes of an engine (`ufork/infer/engine.py`), which bound its memory."""

    max_drawings: PositiveInt = 16
    """Drawings under way at a time."""
    max_answers: PositiveInt = 16
    """Answers under way at a time."""
    max_waiting: PositiveInt = 64
    """Requests that may wait for others to end; more are refused."""
    max_prompt_tokens: PositiveInt = 512
    """Longest prompt or question."""
    max_answer_tokens: int = Field(default=512, ge=1, le=32_768)
    """Longest answer that a request may ask for."""
    prefill_tokens: PositiveInt = 512
    """Tokens of prompts that are run at once, unless a single prompt is longer."""

    @property
    def max_requests(self) -> int:
        """Requests that an engine takes, waiting and under way."""
        return self.max_waiting + self.max_drawings + self.max_answers
