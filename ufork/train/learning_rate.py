"""Learning rate as a pure function of the step."""

import math

from ufork.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of step `step` (from 0): a linear rise from 0 over the warm-up, then constant, or half a cosine."""
    warmup_steps = config.warmup_share * config.steps
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / (warmup_steps + 1)
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - warmup_steps) / max(config.steps - warmup_steps, 1)
    floor = config.final_learning_rate_share
    return config.learning_rate * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)
