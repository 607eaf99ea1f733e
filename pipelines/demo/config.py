"""Config of the demo: what `ufork demo` changes in a recipe for a class of machine, and what to expect there."""

from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from ufork.config import Config

Score = Annotated[float, Field(ge=-1, le=1)]


class VerbSeconds(Config):
    """Seconds that each verb takes with nothing else running; they only serve to estimate the time left."""

    prepare: PositiveFloat = 20.0
    text: PositiveFloat = 5.0
    """Of `ufork tokenizer text`; `fit` and `encode` likewise."""
    fit: PositiveFloat = 60.0
    encode: PositiveFloat = 60.0
    train: PositiveFloat = 900.0
    evaluate: PositiveFloat = 90.0
    report: PositiveFloat = 3.0

    @property
    def total(self) -> float:
        """Seconds of all verbs."""
        return sum(self.model_dump().values())


class ExpectedScores(Config):
    """Least normalised scores to expect: 0 is chance, 1 is perfect."""

    answers: Score | None = None
    drawings: Score | None = None


class MachineClass(Config):
    """Machines that are about as fast, and what they run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=40)
    """Name of the class, by which a run and recorded results refer to it."""
    least_gflops: NonNegativeFloat = 0.0
    """Least rate of matrix products over all cores, in the faster of fp32 and bf16."""
    least_cores: PositiveInt = 1
    """Least number of cores."""
    ranks: PositiveInt | None = None
    """Ranks that train; by default one per core, as far as batches and memory can be divided."""
    values: tuple[str, ...] = ()
    """Values that replace the recipe's, such as phases.joint.train.limit_seconds=600."""
    seconds: VerbSeconds = VerbSeconds()
    expect: ExpectedScores = ExpectedScores()
    pictures: str = ""
    """What the drawings will look like, in one or two sentences."""


class DemoConfig(Config):
    """Classes of machine."""

    machines: tuple[MachineClass, ...] = Field(default=(MachineClass(name="any"),), max_length=16)
    """The first class whose rate and cores a machine reaches is taken; the last takes every machine."""

    @model_validator(mode="after")
    def _covers_every_machine(self) -> Self:
        names = [each.name for each in self.machines]
        if len(set(names)) < len(names):
            raise ValueError(f"every class of machine has its own name, found {', '.join(names)}")
        if not self.machines or self.machines[-1].least_gflops > 0 or self.machines[-1].least_cores > 1:
            raise ValueError("the last class of machine takes every machine: without least_gflops and least_cores")
        return self
