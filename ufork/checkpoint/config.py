"""Configuration of checkpoints: how often, and which are kept."""

from pydantic import NonNegativeInt, PositiveInt

from ufork.config import Config
from ufork.vocabulary import Task


class CheckpointConfig(Config):
    """What a stage keeps to go on from."""

    every_steps: PositiveInt = 500
    """How often one is saved, besides the stage's last step and a stop by signal."""
    keep: PositiveInt = 2
    """The newest so many stay."""
    keep_every_steps: NonNegativeInt = 0
    """Those after a multiple of it stay for good; 0 for none."""
    keep_best: NonNegativeInt = 0
    """So many with the lowest `best_by` stay besides."""
    best_by: Task = Task.GENERATION
    """Whose mean loss, over the steps since the save before, tells which are best."""
    max_failed: NonNegativeInt = 3
    """Saves that may fail, on a full disk say, before the run ends with an error."""
