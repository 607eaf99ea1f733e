"""Alignment of a model's image and text features along the paths of its tasks.

model, pairs -> features of every layer, in files -> scores of each layer beside permuted pairs -> curves
"""

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ufork.analysis.alignment import debiased_cka, mutual_neighbours, prepared, probe_r2
from ufork.analysis.alignment_record import AlignmentCurve, LayerAlignment, Measure, ModelAlignment, Score
from ufork.analysis.config import AlignmentConfig
from ufork.analysis.features import FeatureFiles, collect_features
from ufork.analysis.pairs import Pair
from ufork.errors import ConfigError
from ufork.infer.model import TrainedModel
from ufork.model.config import ModelConfig
from ufork.vocabulary import Task

log = logging.getLogger(__name__)


def measure_alignment(
    model: TrainedModel,
    pairs: Sequence[Pair],
    config: AlignmentConfig,
    *,
    name: str,
    external_ND: Tensor | None = None,
    show_alive: Callable[[], None] = lambda: None,
) -> ModelAlignment:
    """Returns the curves of the tasks of `config` that the model has.

    Args:
        model: trained weights.
        pairs: N pairs.
        config: how they are compared.
        name: what figures call the model.
        external_ND: text features of another model; by default each layer's image features are compared with the text
            features of the same layer.
        show_alive: called at short intervals.

    Raises:
        ConfigError: the model has none of the tasks or no such text layer, or too few pairs are given for the number
            of neighbours.
        StorageError: the folder for temporary files cannot be written.
    """
    tasks = [task for task in config.tasks if task in model.tasks]
    if not tasks:
        raise ConfigError(f"{name}: has the tasks {', '.join(model.tasks)}, none of {', '.join(config.tasks)}")
    if len(pairs) <= config.num_neighbours:
        raise ConfigError(f"num_neighbours={config.num_neighbours}: expected fewer than the {len(pairs)} pairs")
    curves = []
    for task in tasks:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="ufork-align-") as folder:
            files = collect_features(model, pairs, task, Path(folder), pooling=config.pooling, show_alive=show_alive)
            curves.append(_curve(files, task, model.model.config, config, external_ND, show_alive))
        log.info("%s, %s: %d layers in %.1f s", name, task, files.num_layers, time.monotonic() - began)
    return ModelAlignment(name=name, curves=curves)


def _curve(
    files: FeatureFiles,
    task: Task,
    model: ModelConfig,
    config: AlignmentConfig,
    external_ND: Tensor | None,
    show_alive: Callable[[], None],
) -> AlignmentCurve:
    generator = torch.Generator().manual_seed(config.seed)
    permutations = [torch.randperm(files.num_pairs, generator=generator) for _ in range(config.num_permutations)]
    layers = []
    numbers = range(files.num_layers)
    if external_ND is None and config.text_layer is not None and not -len(numbers) <= config.text_layer < len(numbers):
        raise ConfigError(f"text_layer={config.text_layer}: the path of {task} has layers 0 to {numbers[-1]}")
    for layer in numbers:
        text_layer = layer if config.text_layer is None else numbers[config.text_layer]
        text = files.read("text", text_layer) if external_ND is None else external_ND
        scores = _scores(files.read("image", layer), text, config, permutations)
        layers.append(LayerAlignment(layer=layer, stage=_stage(layer, task, model), scores=scores))
        show_alive()
    return AlignmentCurve(task=task, layers=layers)


def _scores(
    image_ND: Tensor, text_NE: Tensor, config: AlignmentConfig, permutations: list[Tensor]
) -> dict[Measure, Score]:
    clipped = [prepared(side, clip_quantile=config.clip_quantile) for side in (image_ND, text_NE)]
    return {
        "mutual_neighbours": mutual_neighbours(
            *clipped, num_neighbours=config.num_neighbours, permutations=permutations
        ),
        "cka": debiased_cka(image_ND, text_NE, permutations=permutations),
        "probe": probe_r2(image_ND, text_NE, permutations=permutations),
    }


def _stage(layer: int, task: Task, model: ModelConfig) -> str:
    if layer == 0:
        return "input"
    is_shared = 0 < layer - model.separate_first_layers <= model.trunk_layers
    return "trunk" if is_shared else str(task)
