"""The part of the model that one stage holds, under the names that the whole model gives it."""

import torch

from ufork.model.attention import AttentionKernel, sdpa_attention
from ufork.model.config import Dimensions, ModelConfig
from ufork.model.unifork import TIED_HEAD, UniFork
from ufork.parallel.collect_weights import Shapes
from ufork.parallel.layout import TASK_OF, Layout, Stage


def build_part(
    config: ModelConfig, dimensions: Dimensions, stage: Stage, kernel: AttentionKernel = sdpa_attention
) -> UniFork:
    """The part of the model that `stage` holds, with arbitrary weights."""
    branches = config.tasks if stage is Stage.WHOLE else [TASK_OF[stage]] if stage in TASK_OF else []
    with_trunk = stage in (Stage.WHOLE, Stage.TRUNK)
    return UniFork(config, dimensions, kernel, with_trunk=with_trunk, branches=branches)


def collected_shapes(config: ModelConfig, dimensions: Dimensions, layout: Layout) -> Shapes:
    """Names and shapes of the parameters that each stage of `layout` trains; a tied weight is the trunk's."""
    shapes = {}
    for stage in layout.shapes:
        with torch.device("meta"):
            part = build_part(config, dimensions, stage)
        names = {name: parameter.shape for name, parameter in part.named_parameters()}
        if config.tie_text_head:
            names.pop(TIED_HEAD, None)
        shapes[stage] = names
    return shapes
