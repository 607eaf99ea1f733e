"""The interface of a model that can be evaluated."""

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ufork.data.shards.sample import Sample
from ufork.infer.config import AnswerConfig, DrawConfig
from ufork.infer.model import TargetLoss
from ufork.vocabulary import Task


class EvaluatedModel(Protocol):
    """Draws, answers, or both. B images, S pixels per side."""

    @property
    def tasks(self) -> Collection[Task]:
        """Tasks that the model has a branch for."""

    @property
    def image_px(self) -> int:
        """S, the side of the square images that it reads and draws."""

    def draw(self, prompts: Sequence[str], config: DrawConfig, *, seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Draws images [B, S, S, 3] for B prompts, each from its own seed."""

    def answer(self, images: NDArray[np.uint8], questions: Sequence[str], config: AnswerConfig) -> list[str]:
        """Answers one question about each of B images [B, S, S, 3]."""

    def loss(self, sample: Sample) -> TargetLoss:
        """Computes the cross-entropy of a sample's targets."""
