"""Learning rate as a pure function of a phase's progress."""

import math

from ufork.train.config import TrainConfig


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Returns the rate of the step that begins at `progress` (0 to 1): a linear rise from 0, then constant or cosine.

    The step after n of N steps begins at n / N.
    """
    if progress < config.warmup_ratio:
        return config.learning_rate * (progress * config.steps + 1) / (config.warmup_ratio * config.steps + 1)
    if config.schedule == "constant":
        return config.learning_rate
    after_warmup = (progress - config.warmup_ratio) / max(1 - config.warmup_ratio, 1 / config.steps)
    floor = config.min_lr_ratio
    return config.learning_rate * (floor + (1 - floor) * (1 + math.cos(math.pi * after_warmup)) / 2)
