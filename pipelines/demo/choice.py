"""Fits a recipe to a machine: class of machine, ranks and precision; the first choice of a run is kept with it.

recipe, Machine                 -> Choice -> RUN/demo.json
recipe, RUN/demo.json of before -> the same Choice, whatever the machine does today
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from pipelines.check_recipe import check_recipe
from pipelines.demo.config import DemoConfig, MachineClass
from pipelines.demo.machine import Machine
from pipelines.recipe import Recipe, read_recipe
from ufork.config import Config, read_mapping
from ufork.errors import ConfigError
from ufork.files import make_folder, write_whole
from ufork.parallel.layout import num_ranks_of

RANK_GB = 1.5
"""Memory that a rank of a demo takes, with room for its loader."""
BF16_ADVANTAGE = 1.2
"""Ratio of the rates from which products in bf16 save more time than the conversions around them take."""


class Choice(Config):
    """What a run of the demo was fitted to, and how long its verbs took so far."""

    machine_class: str
    """Name in the recipe's `demo.machines`."""
    ranks: PositiveInt
    precision: Literal["fp32", "bf16"]
    """Of training: fp32 or bf16."""
    machine: Machine
    """As it was when the choice was made."""
    seconds: dict[str, float] = {}
    """Time that each verb took over all starts, except for a verb's last minutes where the demo itself was killed."""
    finished: tuple[str, ...] = ()
    """Verbs that have finished."""

    def values(self, recipe: Recipe) -> list[str]:
        """Returns the overrides that fit `recipe` to the machine, in the form of the command line.

        Raises:
            ConfigError: the recipe has no such class of machine.
        """
        chosen = require_class(recipe.demo, self.machine_class)
        named = recipe.train.precision != "auto"
        return [*chosen.values, *([] if named else [f"train.precision={self.precision}"])]

    def save(self, path: Path) -> None:
        """Writes the JSON.

        Raises:
            StorageError: it cannot be written.
        """
        make_folder(path.parent, choose=f"another folder by run.folder (now {path.parent.parent})")
        write_whole(path, self.model_dump_json(indent=1) + "\n")


def recorded_choice(path: Path) -> Choice | None:
    """Returns the choice recorded at `path`; None if there is none.

    Raises:
        ConfigError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return Choice.from_mapping(read_mapping(path), origin=str(path))
    except ConfigError as error:
        raise ConfigError(f"{error}\n{path} is damaged: remove it, and the demo measures the machine again") from None


def choose(
    path: Path, overrides: Sequence[str], machine: Machine, *, ranks: int | None, machine_class: str | None
) -> Choice:
    """Fits the recipe at `path` to `machine`.

    Args:
        path: of the recipe.
        overrides: values of the command line; they replace those of the class of machine.
        machine: what was measured.
        ranks: ranks that the user asked for; None to choose.
        machine_class: name of the class that the user asked for; None for that of `machine`.

    Raises:
        ConfigError: the recipe has no such class, or a value is at fault.
    """
    recipe = read_recipe(path, overrides)
    chosen = class_of(recipe.demo, machine) if machine_class is None else require_class(recipe.demo, machine_class)
    fitted = read_recipe(path, [*chosen.values, *overrides])
    return Choice(
        machine_class=chosen.name,
        ranks=ranks or chosen.ranks or num_ranks(fitted, machine),
        precision="bf16" if machine.bf16_gflops > BF16_ADVANTAGE * machine.fp32_gflops else "fp32",
        machine=machine,
    )


def class_of(config: DemoConfig, machine: Machine) -> MachineClass:
    """Returns the first class that `machine` reaches; with a GPU, the first of all."""
    return next(
        each
        for each in config.machines
        if machine.num_gpus or (machine.gflops >= each.least_gflops and machine.cores >= each.least_cores)
    )


def require_class(config: DemoConfig, name: str) -> MachineClass:
    """Returns the class called `name`.

    Raises:
        ConfigError: there is none.
    """
    found = next((each for each in config.machines if each.name == name), None)
    if found is None:
        known = ", ".join(each.name for each in config.machines)
        raise ConfigError(f"class of machine {name}: the recipe's demo.machines has {known}; name one of them")
    return found


def num_ranks(recipe: Recipe, machine: Machine) -> int:
    """Returns how many ranks train: those of a forked layout; else as many as keep most cores, or all GPUs, busy.

    Every rank has the same number of cores, so 6 cores are busy with 2 ranks and not with 4. Of numbers that keep
    equally many busy, the largest is taken: ranks of one thread each wait for no other thread within an operation.
    """
    most = machine.num_gpus or min(machine.cores, max(1, int(machine.memory_gb / RANK_GB)))
    places = machine.num_gpus or machine.cores
    possible = [number for number in range(1, most + 1) if _can_train(recipe, number)]
    return num_ranks_of(recipe.layout) or max(possible, key=lambda n: (n * (places // n), n), default=1)


def _can_train(recipe: Recipe, number: int) -> bool:
    try:
        check_recipe(recipe, number)
    except ConfigError:
        return False
    return True
