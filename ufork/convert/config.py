"""What a text model is made into: the values of the model that the text model does not decide."""

from pathlib import Path

from pydantic import Field, NonNegativeInt

from ufork.config import Config
from ufork.model.config import RqHeadConfig, Width
from ufork.vocabulary import Task


class BranchingConfig(Config):
    """How a text model is given branches, and the sizes of the parts that it has not."""

    separate_first_layers: NonNegativeInt = 0
    """Layers per task below the shared ones, copied from the lowest layers."""
    trunk_layers: NonNegativeInt | None = None
    """Layers that both tasks share; default: half of the text model's, rounded down, with the separate first ones."""
    understanding_layers: NonNegativeInt | None = None
    """Depth of this branch; default: all layers of the text model above the trunk."""
    generation_layers: NonNegativeInt | None = None
    """Depth of this branch; default: all layers of the text model above the trunk."""
    tasks: tuple[Task, ...] = (Task.UNDERSTANDING, Task.GENERATION)
    """Branches to make."""
    rq_head: RqHeadConfig = RqHeadConfig()
    codebook_size: Width = 16_384
    """Entries of the image tokenizer's codebook, as the next two by default VILA-U's."""
    code_width: Width = 1024
    """Width of a code's embedding."""
    codes_per_position: Width = 4
    """Codes at each image position."""
    rq_head_folder: Path | None = None
    """VILA-U's RQ head, from `rq_head/` of what `ufork convert vila-u` writes; the last four values are then its own.
    By default the RQ head is random."""
    seed: int = Field(default=0, ge=0, le=2**62)
    """Seed of projector and RQ head, which the text model does not have."""
