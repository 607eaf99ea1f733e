"""The modules of the model that one stage holds, under the whole model's names, and their cost and shapes."""

import torch

from ufork.model.config import Dimensions, ModelConfig
from ufork.model.cost import SequenceCost
from ufork.model.layers.attention_kernels import AttentionKernel, sdpa_attention
from ufork.model.unifork import TIED_HEAD, UniFork
from ufork.parallel.layout import BRANCHES, TASK_OF, Layout, Stage
from ufork.parallel.transport.collect_weights import Shapes
from ufork.vocabulary import Task
from ufork.without_initialization import WithoutInitialization


def build_stage_modules(
    config: ModelConfig, dimensions: Dimensions, stage: Stage, kernel: AttentionKernel = sdpa_attention
) -> UniFork:
    """Returns the modules that `stage` holds, with uninitialized weights."""
    branches = config.tasks if stage is Stage.COLOCATED else [TASK_OF[stage]] if stage in TASK_OF else []
    with_trunk = stage in (Stage.COLOCATED, Stage.TRUNK)
    with WithoutInitialization():
        return UniFork(config, dimensions, kernel, with_trunk=with_trunk, branches=branches)


def stage_flops(cost: SequenceCost, stage: Stage, task: Task) -> int:
    """Returns the forward operations of a packed sequence in `stage`; 0 if its task does not run through it."""
    if stage is Stage.COLOCATED:
        return cost.forward
    if stage is Stage.TRUNK:
        return cost.trunk
    return cost.branch + cost.head if stage is BRANCHES[task] else 0


def collected_shapes(config: ModelConfig, dimensions: Dimensions, layout: Layout) -> Shapes:
    """Returns names and shapes of the parameters of each stage of `layout`; a tied weight belongs to the trunk."""
    shapes = {}
    for stage in layout.shapes:
        with torch.device("meta"):
            modules = build_stage_modules(config, dimensions, stage)
        names = {name: parameter.shape for name, parameter in modules.named_parameters()}
        if config.tie_word_embeddings:
            names.pop(TIED_HEAD, None)
        shapes[stage] = names
    return shapes
