"""What a model must do to be evaluated."""

from collections.abc import Collection
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ufork.infer.config import AnswerConfig, DrawConfig
from ufork.vocabulary import Task


class EvaluatedModel(Protocol):
    """Draws and answers, or one of the two. B pictures, S pixels of a side."""

    @property
    def tasks(self) -> Collection[Task]:
        """What it can do."""

    def draw(self, prompts: list[str], config: DrawConfig) -> NDArray[np.uint8]:
        """Pictures [B, S, S, 3] for B prompts."""

    def answer(self, images: NDArray[np.uint8], questions: list[str], config: AnswerConfig) -> list[str]:
        """Answers to one question about each of B pictures [B, S, S, 3]."""
