"""Probe of the conflict between the tasks' gradients (`ufork.analysis.gradient_conflict`).

It takes the phase's own first packed sequences, always the same, so that its curves show the model's change alone.
"""

from collections.abc import Mapping, Sequence
from functools import cache

from ufork.analysis.gradient_conflict import gradient_conflict
from ufork.data.prompts import CodecSizes
from ufork.data.stream import TrainingStream
from ufork.model.kernels import use_linear
from ufork.model.layers.attention import find_attention_kernel
from ufork.model.layers.linear import default_linear
from ufork.parallel.transport.stage_world import World
from ufork.train.inference_model import inference_dtype
from ufork.train.initial_model import Weights
from ufork.train.probes.probe import Probe, ShowAlive
from ufork.train.session import Phase
from ufork.vocabulary import PackedSequence, Task


def gradient_conflict_probe(phase: Phase, world: World) -> Probe | None:
    """Returns the probe that `phase` asks for, if it trains both tasks.

    It computes on the rank's GPU in the phase's precision, or on the CPU in fp32, with its own copy of the weights.
    """
    config = phase.train.gradient_conflict
    if not config.every_steps or len(phase.train.global_batch_size.by_task) < len(Task):
        return None
    dtype = inference_dtype(phase.train, world)

    @cache
    def sequences() -> Mapping[Task, Sequence[PackedSequence]]:
        """Only the leader needs them."""
        sizes = phase.initial.config.dimensions
        stream = TrainingStream(
            phase.data.model_copy(update={"num_workers": 0}),
            phase.tokenizer,
            codec=CodecSizes(codes_per_position=sizes.codes_per_position, codebook_size=sizes.codebook_size),
            global_batch_size=dict.fromkeys(Task, config.sequences_per_task),
            replica=0,
            num_replicas=1,
            folder=phase.run.path,
            seed=phase.data_seed,
        )
        return stream.next_step()

    def measure(weights: Weights, show_alive: ShowAlive) -> Mapping[str, float]:
        kernel = find_attention_kernel(world.device, dtype).kernel
        model = phase.initial.build_with(weights, kernel=kernel, origin="training").to(world.device, dtype)
        use_linear(model, default_linear(world.device, dtype))
        model.set_recompute(phase.train.activation_checkpointing)
        show_alive()
        return gradient_conflict(model, sequences(), after_sequence=show_alive).figures()

    return Probe(name="gradient_conflict", every_steps=config.every_steps, measure=measure)
