"""Class of machine, ranks and precision follow from what was measured; a choice is read back from its file."""

from pathlib import Path

import pytest
import yaml

from pipelines.demo.choice import choose, num_ranks, recorded_choice
from pipelines.demo.machine import Machine
from pipelines.recipe import read_recipe
from tests.pipelines.test_all_verbs import RECIPE
from ufork.errors import ConfigError

MACHINES = [
    {"name": "big", "least_gflops": 300, "least_cores": 8, "values": ["phases.joint.train.steps=8"]},
    {"name": "fast", "least_gflops": 200, "ranks": 1},
    {"name": "slow", "values": ["train.steps=2", "model.trunk_layers=2"]},
]
BATCHES = {"understanding": 4, "generation": 8}


def machine(fp32=100.0, bf16=20.0, cores=2, **more):
    return Machine(cpu="X", cores=cores, fp32_gflops=fp32, bf16_gflops=bf16, **({"memory_gb": 16, "disk_gb": 9} | more))


@pytest.fixture
def write(tmp_path):
    def write(machines=MACHINES, **more) -> Path:
        path = tmp_path / "recipe.yaml"
        run = {"name": "tiny", "folder": str(tmp_path)}
        path.write_text(yaml.safe_dump({"run": run, **RECIPE, "demo": {"machines": machines}, **more}))
        return path

    return write


def chosen(path, machine, *overrides, ranks=None, machine_class=None):
    return choose(path, overrides, machine, ranks=ranks, machine_class=machine_class)


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (machine(fp32=100, bf16=400, cores=8), "big"),
        (machine(fp32=100, bf16=400, cores=7), "fast"),
        (machine(fp32=200), "fast"),
        (machine(fp32=199.9), "slow"),
        (machine(fp32=0, num_gpus=1, memory_gb=16), "big"),
    ],
)
def test_the_first_class_that_a_machine_reaches_is_taken(write, found, name):
    assert chosen(write(), found).machine_class == name


def test_values_of_the_class_replace_the_recipes_and_those_of_the_command_line_replace_both(write):
    path = write()
    choice = chosen(path, machine(), "train.steps=3")
    recipe = read_recipe(path, [*choice.values(read_recipe(path)), "train.steps=3"])
    assert recipe.model.trunk_layers == 2 and recipe.phases["joint"].train.steps == 3
    assert recipe.phases["joint"].train.precision == "fp32"


def test_bf16_is_taken_where_its_products_are_faster_unless_the_recipe_names_a_precision(write):
    path = write()
    assert chosen(path, machine(fp32=100, bf16=119)).precision == "fp32"
    choice = chosen(path, machine(fp32=100, bf16=121))
    assert choice.values(read_recipe(path))[-1] == "train.precision=bf16"
    assert "train.precision=bf16" not in choice.values(read_recipe(path, ["train.precision=fp32"]))


@pytest.mark.parametrize(
    ("cores", "memory_gb", "expected"),
    [(1, 16, 1), (2, 16, 2), (4, 16, 4), (6, 16, 2), (8, 16, 4), (8, 4, 2), (8, 0, 1)],
)
def test_ranks_keep_most_cores_busy_as_far_as_batches_lanes_and_memory_can_be_divided(
    write, cores, memory_gb, expected
):
    path = write(data={**RECIPE["data"], "num_lanes": 4}, train={**RECIPE["train"], "global_batch_size": BATCHES})
    assert num_ranks(read_recipe(path), machine(cores=cores, memory_gb=memory_gb)) == expected


def test_ranks_of_the_user_come_before_those_of_the_class_and_of_the_machine(write):
    path = write()
    assert chosen(path, machine(fp32=200)).ranks == 1
    assert chosen(path, machine(fp32=200), ranks=3).ranks == 3


def test_a_forked_layout_has_its_own_number_of_ranks(write):
    assert num_ranks(read_recipe(write(), ["layout.kind=forked"]), machine(cores=16)) == 3


def test_an_unknown_class_is_refused_with_the_known_ones(write):
    with pytest.raises(ConfigError, match="medium: the recipe's demo.machines has big, fast, slow"):
        chosen(write(), machine(), machine_class="medium")


@pytest.mark.parametrize(
    ("machines", "said"),
    [
        ([{"name": "a", "least_gflops": 1}], "the last class of machine takes every machine"),
        ([{"name": "a", "least_cores": 2}], "the last class of machine takes every machine"),
        ([{"name": "a"}, {"name": "a"}], "its own name"),
        ([{"name": "a", "values": ["train.stepps=2"]}], "values of a: 1 value"),
        ([{"name": "a", "values": ["train.steps"]}], "expected KEY=VALUE"),
        ([{"name": "a", "expect": {"drawing": 0.5}}], "the nearest known one is"),
        ([{"name": "A B"}], "demo.machines.0.name"),
    ],
)
def test_a_faulty_section_is_refused_by_every_verb(write, machines, said):
    with pytest.raises(ConfigError, match=said):
        read_recipe(write(machines))


def test_a_choice_is_read_back_and_a_damaged_file_is_named(write, tmp_path):
    path = tmp_path / "run/demo.json"
    assert recorded_choice(path) is None
    choice = chosen(write(), machine(bf16=121.5)).model_copy(
        update={"seconds": {"prepare": 2.5}, "finished": ("prepare",)}
    )
    choice.save(path)
    assert recorded_choice(path) == choice
    path.write_text(path.read_text()[:40])
    with pytest.raises(ConfigError, match="demo.json is damaged: remove it"):
        recorded_choice(path)
