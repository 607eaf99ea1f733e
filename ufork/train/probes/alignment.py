"""Probe of how image and text features agree at each layer (`ufork.analysis.measure_alignment`).

It takes the same pairs every time, so that its curves show the model's change alone.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import torch

from ufork.analysis.measure_alignment import measure_alignment
from ufork.analysis.pairs import Pair, read_pairs
from ufork.data.shards.storage import is_url
from ufork.infer.model import TrainedModel
from ufork.infer.steps import EagerSteps
from ufork.model.layers.attention import find_attention_kernel
from ufork.parallel.transport.stage_world import World
from ufork.train.build_stage import dtype_of
from ufork.train.initial_model import Weights
from ufork.train.probes.probe import Probe, ShowAlive
from ufork.train.session import Phase
from ufork.vision.codec import ImageCodec


def alignment_probe(phase: Phase, codec: ImageCodec, world: World) -> Probe | None:
    """Returns the probe that `phase` asks for.

    It computes on the rank's GPU in the phase's precision, or on the CPU in fp32, with its own copy of the weights.

    Raises:
        ConfigError: there are too few pairs, which rank 0 finds out before the first step.
        ShardError: a source of pairs is missing or damaged.
    """
    config = phase.train.alignment
    if not config.every_steps:
        return None
    dtype = dtype_of(phase.train, world) if world.device.type == "cuda" else torch.float32

    @cache
    def pairs() -> Sequence[Pair]:
        """Only the leader needs them, which is rank 0 unless that trains nothing."""
        own = [source.folder for source in (*phase.data.understanding, *phase.data.generation)]
        folders = [each if is_url(each) else str(phase.run.path / each) for each in config.data or dict.fromkeys(own)]
        return read_pairs(codec, folders, num_pairs=config.num_pairs, seed=config.seed)

    if world.rank == 0:
        pairs()

    def measure(weights: Weights, show_alive: ShowAlive) -> Mapping[str, float]:
        model = TrainedModel.of_weights(
            weights,
            phase.initial.config,
            phase.tokenizer,
            codec.on(world.device),
            kernel=find_attention_kernel(world.device, dtype).kernel,
            device=world.device,
            dtype=dtype,
            origin="training",
            steps=EagerSteps(),
        )
        show_alive()
        measured = measure_alignment(model, pairs(), config, name=phase.name, show_alive=show_alive)
        figures = {}
        for curve in measured.curves:
            for layer in curve.layers:
                for measure, score in layer.scores.items():
                    figures[f"{measure}/{curve.task}/layers.{layer.layer}"] = score.score
                    figures[f"{measure}_of_permuted/{curve.task}/layers.{layer.layer}"] = score.null_mean
        return figures

    return Probe(name="alignment", every_steps=config.every_steps, measure=measure)
