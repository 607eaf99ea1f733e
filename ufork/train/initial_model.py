"""The weights that a phase starts from: those of a seed, or those that an earlier phase wrote.

sizes, codebook, seed or folder of weights  ->  the modules that one stage holds, on the CPU, with their weights
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ufork.model.initialization import initialize
from ufork.model.layers.attention_kernels import AttentionKernel, sdpa_attention
from ufork.model.unifork import UniFork
from ufork.model.weights import WeightsConfig, adopt_weights, load_weights, put_weights, select_weights
from ufork.parallel.engine.stage_modules import build_stage_modules
from ufork.parallel.layout import Stage

Weights = dict[str, Tensor]
"""Parameters of the model by name."""


@dataclass(frozen=True, kw_only=True)
class InitialModel:
    """Builds a model, or the modules of it that one stage holds, with the weights that training starts from."""

    config: WeightsConfig
    """All sizes of the model."""
    codebook_KE: Tensor
    """The image tokenizer's codebook: K codes of E features."""
    seed: int = 0
    """Seed of the initial weights."""
    folder: Path | None = None
    """Folder of weights to start from instead of the seed's."""

    def build(self, stage: Stage, kernel: AttentionKernel = sdpa_attention) -> UniFork:
        """Returns the modules of `stage`, of the whole model for Stage.COLOCATED, with initial weights.

        Raises:
            CheckpointError: `folder` holds no weights, or weights of another model.
        """
        if self.folder is None:
            model = self._build_unset(stage, kernel)
            initialize(model, self.seed)
            return model
        weights = load_weights(self.folder)[0]
        with torch.device("meta"):
            model = build_stage_modules(self.config.model, self.config.dimensions, stage, kernel)
        adopt_weights(model, _of_stage(weights, stage, model), origin=str(self.folder))
        model.set_codebook(self.codebook_KE)
        return model

    def build_with(
        self,
        weights: Weights,
        stage: Stage = Stage.COLOCATED,
        kernel: AttentionKernel = sdpa_attention,
        *,
        origin: str,
    ) -> UniFork:
        """Returns the modules of `stage` with copies of the whole model's `weights` that belong to it.

        Raises:
            CheckpointError: `weights`, which come from `origin`, are those of another model.
        """
        model = self._build_unset(stage, kernel)
        put_weights(model, _of_stage(weights, stage, model), origin=origin)
        return model

    def _build_unset(self, stage: Stage, kernel: AttentionKernel) -> UniFork:
        model = build_stage_modules(self.config.model, self.config.dimensions, stage, kernel)
        model.set_codebook(self.codebook_KE)
        return model


def _of_stage(weights: Weights, stage: Stage, model: UniFork) -> Weights:
    """Returns those of the whole model's weights that `model`, the modules of `stage`, has."""
    return weights if stage is Stage.COLOCATED else select_weights(weights, model)
