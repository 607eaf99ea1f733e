"""Plans: what is counted, what is recommended and why, and what is refused."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipelines import cli
from pipelines.recipe import read_recipe
from pipelines.verbs.plan import workload_of
from tests.tiny import DIMENSIONS, tiny_config, tiny_model
from ufork.errors import ConfigError
from ufork.model.cost import sequence_cost
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.layout import Stage, make_layout
from ufork.parallel.schedule.actions import Pass
from ufork.planning.machine import PROFILES, MachineProfile, profile_of
from ufork.planning.memory import rank_memory
from ufork.planning.planner import make_plan
from ufork.planning.step_time import estimate_step, stage_times
from ufork.planning.weak_scaling import draw_scaling, weak_scaling
from ufork.planning.workload import Workload
from ufork.vocabulary import Task

H100 = PROFILES["h100"]
RELEASED_RECIPE = Path(__file__).parents[2] / "pipelines/recipes/unifork_0.5b.yaml"


def tiny_workload(**changes) -> Workload:
    values = dict(
        model=tiny_config(num_key_value_heads=4),
        dimensions=DIMENSIONS,
        global_batch_size={Task.UNDERSTANDING: 8, Task.GENERATION: 8},
        seq_len=256,
        num_lanes=240,
        precision="bf16",
        recompute=False,
    )
    return Workload(**{**values, **changes})


@pytest.fixture(scope="module")
def released() -> Workload:
    """The released size in its first phase with both tasks, with packed sequences for many devices."""
    workload = workload_of(read_recipe(RELEASED_RECIPE), "joint")
    return replace(workload, global_batch_size={Task.UNDERSTANDING: 48, Task.GENERATION: 48})


def test_parameters_are_those_of_the_model():
    model, workload = tiny_model(tiny_config(num_key_value_heads=4)), tiny_workload()
    assert workload.num_parameters(Stage.COLOCATED) == sum(p.numel() for p in model.parameters())
    apart = sum(workload.num_parameters(stage) for stage in (Stage.TRUNK, Stage.UNDERSTANDING, Stage.GENERATION))
    assert apart == workload.num_parameters(Stage.COLOCATED) + model.trunk.token_embedding.weight.numel(), (
        "the tied copy"
    )


@pytest.mark.parametrize("task", Task)
def test_operations_are_those_of_a_nominal_sequence(task):
    workload = tiny_workload()
    counted = sequence_cost(workload.model, workload.dimensions, workload.sequence(task))
    estimated = workload.cost(task)
    assert estimated.head == pytest.approx(counted.head, rel=0.01)
    assert estimated.trunk < counted.trunk < 2 * estimated.trunk, "the estimate leaves attention out"


@pytest.mark.parametrize("task", Task)
def test_a_path_with_separate_first_layers_is_planned_as_the_y_of_its_layers(task):
    """With a trunk as deep as both; only the stage holds those layers once more."""
    shapes = ({"separate_first_layers": 3}, {"trunk_layers": 5}, {})
    x, y, other = (tiny_workload(model=tiny_config(num_key_value_heads=4, **shape)) for shape in shapes)
    stage = Stage.COLOCATED
    assert x.num_layers(stage, task) == y.num_layers(stage, task)
    assert x.cost(task) == y.cost(task)
    assert x.num_path_parameters(stage, task) == y.num_path_parameters(stage, task)
    assert x.num_parameters(stage) - y.num_parameters(stage) == y.num_parameters(stage) - other.num_parameters(stage)
    one, two = (rank_memory(each, stage, StageShape()) for each in (x, y))
    assert (one.activations, one.head) == (two.activations, two.head)
    assert one.weights > two.weights


def test_no_forked_layout_is_planned_for_separate_first_layers():
    models = [tiny_config(num_key_value_heads=4, separate_first_layers=number) for number in (0, 1)]
    plans = [make_plan(tiny_workload(model=model), H100, num_devices=4) for model in models]
    kinds = [{candidate.config.kind for candidate in plan.candidates} for plan in plans]
    assert kinds == [{"colocated", "forked"}, {"colocated"}]


def test_parameter_bytes_per_rank_fall_as_one_over_dp_times_tp(released):
    whole = rank_memory(released, Stage.TRUNK, StageShape())
    for tp, dp in ((1, 2), (2, 1), (2, 4), (1, 16)):
        memory = rank_memory(released, Stage.TRUNK, StageShape(tp=tp, dp=dp))
        assert memory.weights == pytest.approx(whole.weights / (tp * dp), rel=1e-6)
        assert memory.optimizer == pytest.approx(whole.optimizer / (tp * dp), rel=1e-6)


def test_gradients_are_whole_until_the_flush_unless_reduced_each_time(released):
    shape = StageShape(dp=8)
    whole, sharded = (rank_memory(released, Stage.TRUNK, shape, reduce_each_backward=each) for each in (False, True))
    assert whole.unreduced == pytest.approx(8 * whole.gradients, rel=1e-6)
    assert sharded.unreduced == 0 and sharded.gradients == whole.gradients


def test_only_the_trunk_keeps_every_sequence_in_flight(released):
    for stage in (Stage.TRUNK, Stage.GENERATION):
        four, eight, twelve = (
            rank_memory(released, stage, StageShape(), in_flight=sequences).activations for sequences in (4, 8, 12)
        )
        assert eight - four == twelve - eight
        assert (eight > four) == (stage is Stage.TRUNK)


def test_equal_ranks_waste_half_at_the_released_size(released):
    """The RQ head makes generation the longest way by far, so the other stages idle most of the step."""
    share = released.forward_flops(Stage.GENERATION, Task.GENERATION) / sum(
        released.forward_flops(Stage.COLOCATED, task) for task in Task
    )
    assert 0.6 < share < 0.75
    equal = LayoutConfig(
        kind="forked", trunk=StageShape(dp=8), understanding=StageShape(dp=8), generation=StageShape(dp=8)
    )
    layout = make_layout(equal, num_ranks=24, global_batch_size=released.global_batch_size)
    bubble = estimate_step(released, H100, equal, layout).bubble
    assert sum(bubble.values()) / 3 > 0.45
    forked = [c for c in make_plan(released, H100, num_devices=24).candidates if c.config.kind == "forked"]
    assert forked[0].config.generation.size > forked[0].config.understanding.size


def test_backward_takes_twice_as_long_and_once_more_for_what_is_recomputed():
    """Without rates of other kernels only operations count; the head is not recomputed."""
    machine = H100.model_copy(update={"kernels": None})
    layout = make_layout(LayoutConfig(), num_ranks=1, global_batch_size=tiny_workload().global_batch_size)
    times = [stage_times(tiny_workload(recompute=recompute), machine, layout).seconds for recompute in (False, True)]
    forward = times[0][Stage.COLOCATED, Task.GENERATION, Pass.FORWARD]
    kept, recomputed = (seconds[Stage.COLOCATED, Task.GENERATION, Pass.BACKWARD] for seconds in times)
    assert kept == pytest.approx(2 * forward)
    again = tiny_workload(recompute=True).recomputed_flops(Stage.COLOCATED, Task.GENERATION)
    cost = tiny_workload().cost(Task.GENERATION)
    assert 0.5 * (cost.trunk + cost.branch) < again < cost.trunk + cost.branch
    assert recomputed == pytest.approx((2 + again / cost.forward) * forward)


def seconds_by_gathers() -> list[float]:
    """Returns the seconds of a step whose passes hide gathers, do not, and in which each collective has a latency."""
    layout = make_layout(LayoutConfig(), num_ranks=2, global_batch_size=tiny_workload().global_batch_size)
    hiding = H100.model_copy(update={"collective_latency_us": 0.0})
    seen = hiding.model_copy(update={"hides_gathers": False})
    latent = seen.model_copy(update={"collective_latency_us": 50.0})
    return [estimate_step(tiny_workload(), each, LayoutConfig(), layout).seconds for each in (hiding, seen, latent)]


def test_gathers_of_large_stages_add_to_a_pass_where_nothing_hides_them(monkeypatch):
    monkeypatch.setattr("ufork.parallel.config.RESIDENT_PARAMETERS", 0)
    hidden, seen, latent = seconds_by_gathers()
    assert hidden < seen < latent


def test_replicas_that_keep_their_weights_gather_once_a_step():
    hidden, seen, latent = seconds_by_gathers()
    assert hidden == seen
    assert latent == pytest.approx(seen + 50e-6)


def test_plain_zero_is_recommended_for_a_small_model():
    plan = make_plan(tiny_workload(), H100, num_devices=4)
    assert plan.recommended.config.kind == "colocated"
    assert "plain ZeRO-3" in plan.reason


def test_a_model_that_fits_no_device_alone_is_refused_with_its_need(released):
    tight = H100.model_copy(update={"memory_gb": 2.0})
    with pytest.raises(ConfigError, match=r"8 devices of 2 GB: the leanest layout \(.*\) needs \d+ GB a rank"):
        make_plan(released, tight, num_devices=8)


def test_more_devices_than_sequences_are_refused():
    with pytest.raises(ConfigError, match="no layout gives every replica equally many packed sequences"):
        make_plan(tiny_workload(), H100, num_devices=1000)


@pytest.mark.slow
def test_only_layouts_that_the_recipe_allows_are_recommended():
    """64 replicas cannot share 240 lanes."""
    sequences = {Task.UNDERSTANDING: 192, Task.GENERATION: 192}
    workload = replace(workload_of(read_recipe(RELEASED_RECIPE), "joint"), global_batch_size=sequences, num_lanes=240)
    plan = make_plan(workload, H100, num_devices=64)
    for candidate in plan.candidates:
        assert workload.num_lanes % candidate.layout.shapes[candidate.layout.reader].dp == 0
    assert re.search(
        r"colocated, tp 1 would be \d+% faster, but data\.num_lanes=240 .* set data\.num_lanes=256", plan.reason
    )
    fitting = make_plan(replace(workload, num_lanes=256), H100, num_devices=64)
    assert fitting.recommended.config == LayoutConfig() and fitting.recommended.num_ranks == 64
    assert "num_lanes" not in fitting.reason


def test_64_replicas_can_share_the_lanes_of_the_released_recipe():
    assert all(phase.data.num_lanes % 64 == 0 for phase in read_recipe(RELEASED_RECIPE).phases.values())


def test_lanes_that_no_layout_can_share_are_refused():
    with pytest.raises(ConfigError, match=r"data\.num_lanes=7 is not a multiple .* set data\.num_lanes="):
        make_plan(
            tiny_workload(num_lanes=7, global_batch_size={Task.UNDERSTANDING: 0, Task.GENERATION: 8}),
            H100,
            num_devices=8,
        )


def test_a_measured_profile_is_read_from_its_file(tmp_path):
    measured = H100.model_copy(update={"name": "measured", "gflops": 123.5})
    (tmp_path / "machine.yaml").write_text(measured.to_yaml())
    assert profile_of(str(tmp_path / "machine.yaml")) == measured
    with pytest.raises(ConfigError, match="expected one of h100, h200, a100"):
        profile_of("h1000")
    assert isinstance(profile_of("a100"), MachineProfile)


@pytest.mark.parametrize("gpu", ["v100", "t4"])
def test_bf16_is_refused_on_a_gpu_that_emulates_it(gpu):
    recipe = read_recipe(RELEASED_RECIPE)
    with pytest.raises(ConfigError, match=rf"{gpu} does not compute bf16 natively.* set train\.precision=auto"):
        workload_of(recipe, "joint", profile_of(gpu))
    automatic = read_recipe(RELEASED_RECIPE, ["train.precision=auto"])
    assert workload_of(automatic, "joint", profile_of(gpu)).precision == "fp32"
    assert workload_of(automatic, "joint", H100).precision == "bf16"


def test_scaling_doubles_up_to_the_number_and_is_drawn(tmp_path):
    points = weak_scaling(tiny_workload(global_batch_size=dict.fromkeys(Task, 16)), H100, most_devices=32)
    assert [point.num_devices for point in points] == [8, 16, 32]
    draw_scaling(points, tmp_path / "scaling.png")
    assert Image.open(tmp_path / "scaling.png").size == (900, 520)


def test_the_verb_prints_a_table_and_the_layout_to_paste(capsys):
    sequences = ["train.global_batch_size.understanding=16", "train.global_batch_size.generation=16"]
    assert cli.main(["plan", str(RELEASED_RECIPE), "--gpus", "16", "--phase", "joint", *sequences]) == 0
    shown = capsys.readouterr().out
    assert "colocated, tp 1" in shown and "recommended: " in shown
    LayoutConfig.model_validate(yaml.safe_load(shown[shown.index("\nlayout:") :])["layout"])
