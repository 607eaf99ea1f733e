"""Configuration of checkpoints: how often one is saved, and which ones are kept."""

from pydantic import NonNegativeInt, PositiveInt

from ufork.config import Config
from ufork.vocabulary import Task


class CheckpointConfig(Config):
    """Selection of the checkpoints of a phase that are saved and kept."""

    every_steps: PositiveInt = 500
    """Steps between two saves; one more is saved after the phase's last step and when a signal stops training."""
    keep: PositiveInt = 2
    """Number of newest checkpoints to keep."""
    keep_every_steps: NonNegativeInt = 0
    """Keeps every checkpoint whose step is a multiple of this; 0 for none."""
    keep_best: NonNegativeInt = 0
    """Number of checkpoints with the lowest loss of `best_by` to keep as well."""
    best_by: Task = Task.GENERATION
    """Task whose mean loss since the previous save decides which checkpoints are best."""
    max_failed: NonNegativeInt = 3
    """Number of saves that may fail, for example on a full disk, before the run ends with an error."""
