"""Sizes of arms are those of their models, and arms that are not matched are refused with all figures."""

import pytest

from pipelines.ablation.config import Matched
from pipelines.ablation.cost import cost_of, require_matched
from pipelines.ablation.suite import read_suite
from pipelines.check_recipe import nominal_dimensions
from tests.pipelines.ablation.tiny_suite import suite_file
from ufork.errors import ConfigError
from ufork.model.cost import nominal_cost
from ufork.model.unifork import UniFork
from ufork.vocabulary import Task

EXPERT = {"model.tasks": ["generation"], "train.global_batch_size.understanding": 0}


@pytest.fixture
def recipes(tmp_path):
    arms = {"shared": {}, "y": {f"model.{name}_layers": 1 for name in ("trunk", *Task)}, "expert": EXPERT}
    return read_suite(suite_file(tmp_path, arms=arms)).recipes


def numbers(*modules):
    return sum({id(each): each.numel() for module in modules for each in module.parameters()}.values())


def test_active_parameters_are_those_of_trunk_and_branch(recipes):
    for recipe in recipes.values():
        model, cost = UniFork(recipe.model, nominal_dimensions(recipe)), cost_of(recipe)
        assert cost.total_parameters == numbers(model)
        expected = {task: numbers(model.trunk, model.branches[task]) for task in recipe.model.tasks}
        assert cost.active_parameters == expected


def test_operations_are_those_of_all_steps_and_packed_sequences(recipes):
    recipe = recipes["y"]
    pass_flops = nominal_cost(recipe.model, nominal_dimensions(recipe), Task.GENERATION, seq_len=200).training
    assert cost_of(recipe).training_flops[Task.GENERATION] == 4 * 2 * pass_flops


def test_forks_of_equal_depth_have_equal_active_parameters_and_operations(recipes):
    costs = {arm: cost_of(recipe) for arm, recipe in recipes.items()}
    require_matched(costs, Matched(active_parameters=0.0, training_flops=0.0))
    require_matched(costs, Matched())
    with pytest.raises(ConfigError) as refused:
        require_matched(costs, Matched(total_parameters=0.05))
    figures = ", ".join(f"{arm} {cost.total_parameters:,}" for arm, cost in costs.items())
    assert str(refused.value).startswith("matched.total_parameters: total parameters differ by ")
    assert figures in str(refused.value) and "5.0% is allowed" in str(refused.value)


def test_a_tolerance_allows_what_it_says(recipes):
    costs = {arm: cost_of(recipe) for arm, recipe in recipes.items() if arm != "expert"}
    totals = [cost.total_parameters for cost in costs.values()]
    difference = max(totals) / min(totals) - 1
    require_matched(costs, Matched(total_parameters=difference * 1.001))
    with pytest.raises(ConfigError, match="total_parameters"):
        require_matched(costs, Matched(total_parameters=difference * 0.999))


def test_a_task_is_compared_between_the_arms_that_train_it(recipes):
    costs = {arm: cost_of(recipe) for arm, recipe in recipes.items()}
    assert costs["expert"].active_parameters.keys() == {Task.GENERATION}
    half = costs["expert"].model_copy(update={"training_flops": {Task.GENERATION: 1}})
    with pytest.raises(ConfigError, match="training flops of generation differ .* expert 1; "):
        require_matched({**costs, "expert": half}, Matched(training_flops=0.5))
