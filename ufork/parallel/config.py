"""Layout of a job's ranks over the stages of the model, and how the stages communicate."""

from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from ufork.config import Config

REDUCE_BUCKET_NUMBERS = 500_000_000
"""Gradients that ZeRO-3 reduces at a time, DeepSpeed's default; it always allocates a buffer of that size."""

RESIDENT_PARAMETERS = 2_000_000_000
"""Parameters of a stage, on one tensor-parallel rank, that each replica keeps whole between updates; larger stages
gather each layer's from the other replicas in every pass. DeepSpeed lets passes gather 1,000,000,000 by default."""


class StageShape(Config):
    """Ranks of one stage: `dp` replicas of `tp` ranks each."""

    tp: PositiveInt = 1
    """Ranks that each matrix product of a replica is partitioned over (tensor parallelism)."""
    dp: PositiveInt = 1
    """Replicas, which run different packed sequences; ZeRO-3 shards weights and optimizer over them."""

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.tp * self.dp


class LayoutConfig(Config):
    """`layout: colocated` has one stage with the whole model; `layout: forked` has one each for trunk and branches.

    A plain string is the `kind`.
    """

    kind: Literal["colocated", "forked"] = "colocated"
    colocated_tp: PositiveInt = 1
    """Tensor-parallel ranks of the colocated layout; its dp is the number of ranks over this."""
    trunk: StageShape = StageShape()
    """Shape of the trunk's stage in the forked layout; likewise for the branches below."""
    understanding: StageShape = StageShape()
    generation: StageShape = StageShape()
    placement: Literal["stages", "replicas"] = "stages"
    """Ranks that have adjacent numbers, and so share a node: those of a stage (ZeRO's gathers stay inside nodes), or a
    trunk replica with its branch replicas (activations stay inside nodes)."""
    in_flight: PositiveInt | None = None
    """Packed sequences of one trunk replica that may be between their forward and backward pass, with their activations
    in memory (default: as many as keep the branches busy)."""
    p2p_dtype: Literal["compute", "fp32", "bf16"] = "compute"
    """Type in which hidden states and gradients are sent between stages; `compute`: the type the model computes in."""
    sequence_parallel: bool = True
    """Partition the activations between the trunk's tensor-parallel products over its ranks too (arXiv 2205.05198), if
    tp > 1. CUDA only: elsewhere it is off, which is logged."""
    reduce_each_backward: bool = False
    """Reduce gradients at every backward pass instead of once a step: slower, but ranks need not keep full-size
    gradients of their stage, nor, with several replicas, its whole weights between updates."""

    def keeps_weights(self, num_parameters: int, dp: int) -> bool:
        """Returns whether each of `dp` replicas of a stage keeps its weights whole between updates.

        Args:
            num_parameters: of the stage, on one tensor-parallel rank.
            dp: replicas.
        """
        return dp == 1 or (num_parameters <= RESIDENT_PARAMETERS and not self.reduce_each_backward)

    @model_validator(mode="before")
    @classmethod
    def _word_is_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    def describe(self) -> str:
        """Returns, for example, "forked: trunk 2x4, understanding 1x2, generation 1x8" (tp x dp)."""
        if self.kind == "colocated":
            return f"colocated, tp {self.colocated_tp}"
        shapes = {"trunk": self.trunk, "understanding": self.understanding, "generation": self.generation}
        return "forked: " + ", ".join(f"{name} {shape.tp}x{shape.dp}" for name, shape in shapes.items())
