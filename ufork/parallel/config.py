"""How a job's ranks are laid out over the stages of the Y, and how the stages talk."""

from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from ufork.config import Config

REDUCE_BUCKET_NUMBERS = 500_000_000
"""Gradients that ZeRO-3 sends at a time, DeepSpeed's own choice; it holds a buffer of as many, needed or not."""


class StageShape(Config):
    """Ranks of one stage: a grid of `dp` replicas, each of `tp` ranks."""

    tp: PositiveInt = 1
    """Ranks that share every matrix product of a replica (tensor parallelism)."""
    dp: PositiveInt = 1
    """Replicas, each with rows of its own; ZeRO-3 shards weights and optimizer over them."""

    @property
    def size(self) -> int:
        """Ranks in the stage."""
        return self.tp * self.dp


class LayoutConfig(Config):
    """`layout: colocated` for one stage that holds everything; `layout: forked` for trunk and branches apart.

    A bare word stands for its `kind`.
    """

    kind: Literal["colocated", "forked"] = "colocated"
    colocated_tp: PositiveInt = 1
    """Tensor parallelism of the colocated layout; its data parallelism is what the number of ranks leaves."""
    trunk: StageShape = StageShape()
    """Shape of the trunk's stage in the forked layout; likewise the next two."""
    understanding: StageShape = StageShape()
    generation: StageShape = StageShape()
    placement: Literal["stages", "replicas"] = "stages"
    """Which ranks are neighbours, and so on one node: a stage's (ZeRO gathers stay inside nodes) or those of a trunk
    replica and the branch replicas beside it (activations stay inside nodes)."""
    in_flight: PositiveInt | None = None
    """Rows of one trunk replica that may be between their forward and backward pass; their activations are kept. Unless
    given, as many as keep the branches busy."""
    p2p_dtype: Literal["compute", "fp32", "bf16"] = "compute"
    """Of hidden states and gradients between stages; `compute` sends what the model computes in."""
    sequence_parallel: bool = True
    """Shard the activations between the trunk's tensor-parallel products over its ranks too (arXiv 2205.05198), where
    tp > 1. CUDA only: elsewhere it is off, which is logged."""
    reduce_each_backward: bool = False
    """Reduce gradients at every backward pass instead of once a step: slower, and spares each rank the full-size
    gradients of its stage."""

    @model_validator(mode="before")
    @classmethod
    def _word_is_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    def describe(self) -> str:
        """As "forked: trunk 2x4, understanding 1x2, generation 1x8" (tp x dp)."""
        if self.kind == "colocated":
            return f"colocated, tp {self.colocated_tp}"
        shapes = {"trunk": self.trunk, "understanding": self.understanding, "generation": self.generation}
        return "forked: " + ", ".join(f"{name} {shape.tp}x{shape.dp}" for name, shape in shapes.items())
