"""Probe of how image and text features agree at each layer (`ufork.analysis.measure_alignment`).

It takes the same pairs every time, so that its curves show the model's change alone.
"""

from collections.abc import Mapping, Sequence
from functools import cache

from ufork.analysis.measure_alignment import measure_alignment
from ufork.analysis.pairs import Pair, read_pairs
from ufork.data.shards.storage import is_url
from ufork.parallel.transport.stage_world import World
from ufork.train.inference_model import inference_model
from ufork.train.initial_model import Weights
from ufork.train.probes.probe import Probe, ShowAlive
from ufork.train.session import Phase
from ufork.vision.codec import ImageCodec


def alignment_probe(phase: Phase, codec: ImageCodec, world: World) -> Probe | None:
    """Returns the probe that `phase` asks for.

    Raises:
        ConfigError: there are too few pairs, which rank 0 finds out before the first step.
        ShardError: a source of pairs is missing or damaged.
    """
    config = phase.train.alignment
    if not config.every_steps:
        return None

    @cache
    def pairs() -> Sequence[Pair]:
        """Only the leader needs them, which is rank 0 unless that trains nothing."""
        own = [source.folder for source in (*phase.data.understanding, *phase.data.generation)]
        folders = [each if is_url(each) else str(phase.run.path / each) for each in config.data or dict.fromkeys(own)]
        return read_pairs(codec, folders, num_pairs=config.num_pairs, seed=config.seed)

    if world.rank == 0:
        pairs()

    def measure(weights: Weights, show_alive: ShowAlive) -> Mapping[str, float]:
        model = inference_model(phase, weights, codec, world, after_step=show_alive)
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
