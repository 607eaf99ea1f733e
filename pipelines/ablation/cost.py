"""Size and training cost of each arm, and whether they are matched as the suite declares.

resolved recipe -> Cost: parameters of meta models, operations of `ufork.model.cost`
Cost of each arm, Matched -> nothing, or a ConfigError that names quantity, arms and figures

The parameters that a task's samples run through are those of a model that has only this task. Sizes of the tokenizers
are those that the recipe asks for, so that arms are compared before any data exists.
"""

import math
from collections.abc import Iterator, Mapping

from pipelines.ablation.config import Matched
from pipelines.check_recipe import nominal_dimensions
from pipelines.recipe import Recipe
from ufork.analysis.ablation.trial_result import Cost
from ufork.errors import ConfigError
from ufork.model.config import Dimensions, ModelConfig
from ufork.model.cost import nominal_cost
from ufork.model.weights import WeightsConfig, meta_model
from ufork.vocabulary import Task


def cost_of(recipe: Recipe) -> Cost:
    """Returns the cost of an arm; a phase that trains only some parameters counts as one that trains all."""
    model, dimensions = recipe.model, nominal_dimensions(recipe)
    return Cost(
        total_parameters=num_parameters(model, dimensions),
        active_parameters={
            task: num_parameters(model.model_copy(update={"tasks": (task,)}), dimensions) for task in model.tasks
        },
        training_flops={task: _training_flops(recipe, dimensions, task) for task in model.tasks},
    )


def num_parameters(model: ModelConfig, dimensions: Dimensions) -> int:
    """Returns the number of parameters of a model; a tied weight counts once."""
    whole = meta_model(WeightsConfig(model=model, dimensions=dimensions))
    return sum(parameter.numel() for parameter in whole.parameters())


def num_steps(recipe: Recipe) -> int:
    """Returns the optimizer steps of all phases."""
    return sum(phase.train.steps for phase in recipe.phases.values())


def _training_flops(recipe: Recipe, dimensions: Dimensions, task: Task) -> int:
    return sum(
        phase.train.steps
        * phase.train.global_batch_size.by_task.get(task, 0)
        * nominal_cost(recipe.model, dimensions, task, seq_len=phase.data.seq_len).training
        for phase in recipe.phases.values()
    )


def require_matched(costs: Mapping[str, Cost], matched: Matched) -> None:
    """Checks that arms cost the same.

    Args:
        costs: by the names of the arms.
        matched: what must be equal.

    Raises:
        ConfigError: the arms differ in a declared quantity by more than its tolerance.
    """
    for quantity, tolerance in matched.model_dump().items():
        for name, figures in _figures(costs, quantity) if tolerance is not None else ():
            least, most = min(figures.values()), max(figures.values())
            if most > least * (1 + tolerance):
                listed = ", ".join(f"{arm} {figure:,}" for arm, figure in figures.items())
                difference = most / least - 1 if least else math.inf
                raise ConfigError(
                    f"matched.{quantity}: {name} differ by {difference:.1%} between the arms, and"
                    f" {tolerance:.1%} is allowed: {listed}; change layers, sizes or steps of these arms, or the"
                    " tolerance"
                )


def _figures(costs: Mapping[str, Cost], quantity: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Yields a name and the figures of the arms that have it, for each figure that must be equal."""
    name = quantity.replace("_", " ")
    if quantity == "total_parameters":
        yield name, {arm: cost.total_parameters for arm, cost in costs.items()}
        return
    for task in Task:
        by_task = {arm: getattr(cost, quantity) for arm, cost in costs.items()}
        if figures := {arm: found[task] for arm, found in by_task.items() if task in found}:
            yield f"{name} of {task}", figures
