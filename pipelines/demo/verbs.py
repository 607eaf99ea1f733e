"""The verbs of a demo, in order, and how much of the current one is done.

Recipe, Choice -> Verb: command line, expected seconds, and the share that is done where its files show that
"""

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.demo.config import VerbSeconds
from pipelines.recipe import Recipe
from ufork.report.metrics import read_metrics
from ufork.train.config import TrainConfig


@dataclass(frozen=True)
class Position:
    """How far a verb has come."""

    share: float
    """From 0 to 1."""
    note: str
    """The same for people."""


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One verb of a demo."""

    name: str
    """As on the command line."""
    arguments: tuple[str, ...]
    """Of `ufork`, without the recipe and its values."""
    expected_seconds: float
    position: Callable[[], Position] | None = None
    """How far it has come; None where only its time shows that."""

    @property
    def log_name(self) -> str:
        """Name of its file in the folder of logs."""
        return f"{self.name.replace(' ', '-')}.log"


def demo_verbs(recipe: Recipe, seconds: VerbSeconds, *, ranks: int) -> list[Verb]:
    """Returns the verbs from data to report.

    Args:
        recipe: fitted to the machine.
        seconds: expected of each verb.
        ranks: ranks that train.
    """

    def verb(name: str, expected: float, *options: str, position: Callable[[], Position] | None = None) -> Verb:
        arguments = (*name.split(), *options)
        return Verb(name=name, arguments=arguments, expected_seconds=expected, position=position)

    return [
        verb("prepare", seconds.prepare),
        verb("tokenizer text", seconds.text),
        verb("tokenizer fit", seconds.fit),
        verb("tokenizer encode", seconds.encode),
        verb("train", seconds.train, "--ranks", str(ranks), position=lambda: training_position(recipe)),
        verb("evaluate", seconds.evaluate),
        verb("report", seconds.report),
    ]


def training_position(recipe: Recipe) -> Position:
    """Returns how far the phases of `recipe` are trained, by their metrics."""
    done, note = 0.0, "starting"
    weights = phase_weights(recipe)
    for name, phase in recipe.phases.items():
        entries = read_metrics(recipe.run_folder.phase(name).metrics).entries
        if entries:
            done += weights[name] * _phase_share(phase.train, entries[-1])
            note = f"{name}, step {entries[-1]['step']} of {phase.train.steps}"
    return Position(min(1.0, done / sum(weights.values())), note)


def phase_weights(recipe: Recipe) -> dict[str, float]:
    """Returns in which proportion the phases take time: by their limits, or else by their steps."""
    limits = {name: phase.train.limit_seconds for name, phase in recipe.phases.items()}
    if None not in limits.values():
        return {name: limit or 0.0 for name, limit in limits.items()}
    return {name: float(phase.train.steps) for name, phase in recipe.phases.items()}


def _phase_share(config: TrainConfig, entry: dict) -> float:
    share = entry["step"] / config.steps
    if config.limit_seconds is not None:
        share = max(share, entry.get("seconds", 0.0) / config.limit_seconds)
    return min(1.0, share)
