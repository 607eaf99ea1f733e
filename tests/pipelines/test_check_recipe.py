"""Recipes that cannot train are refused by train, submit and plan alike, before any rank is started."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pipelines
from pipelines import cli
from pipelines.check_recipe import check_recipe
from pipelines.recipe import read_recipe
from pipelines.verbs.plan import plan_for, workload_of
from tests.tiny_run import RECIPE
from ufork.errors import ConfigError
from ufork.planning.machine import PROFILES

FORKED = "layout={kind: forked, trunk: {tp: 2}}"
REFUSED = {
    "ranks": ([FORKED], 3, "layout: forked takes (tp x dp) trunk 2x1 + understanding 1x1 + generation 1x1 = 4 ranks"),
    "colocated tp": (["layout.colocated_tp=2"], 3, "layout.colocated_tp=2 does not divide the 3 ranks"),
    "batch": ([], 3, "train.global_batch_size.understanding=2 is not a multiple of the 3 data-parallel replicas"),
    "batch of one phase": (
        ["phases.all.train.global_batch_size.generation=3"],
        2,
        "phase all on 2 ranks: train.global_batch_size.generation=3 is not a multiple of the 2",
    ),
    "lanes": (["data.num_lanes=3"], 2, "data.num_lanes=3 is not a multiple of the 2 data-parallel replicas"),
    "workers": (["data.num_workers=3"], 2, "data.num_workers=3: each process takes at least one lane"),
    "in_flight": (
        ["layout={kind: forked, in_flight: 1, generation: {dp: 2}}"],
        4,
        "layout.in_flight=1 deadlocks",
    ),
    "tp of two stages": (
        ["layout={kind: forked, trunk: {tp: 2}, generation: {tp: 3}}"],
        6,
        "trunk.tp=2 and generation.tp=3: one must be a multiple of the other",
    ),
    "heads": (["layout.colocated_tp=4"], 4, "tp=4 does not divide model.num_key_value_heads=2"),
    "intermediate size": (
        ["layout.colocated_tp=2", "model.intermediate_size=47"],
        2,
        "tp=2 does not divide model.intermediate_size=47",
    ),
    "vocabulary": (
        ["layout.colocated_tp=3", "model.hidden_size=36", "model.num_attention_heads=6", "model.num_key_value_heads=6"],
        3,
        "tp=3 does not divide the vocabulary's size=1024",
    ),
    "rq_head": (
        ["layout.colocated_tp=2", "model.rq_head.hidden_size=25"],
        2,
        "tp=2 does not divide model.rq_head.hidden_size=25",
    ),
    "codebook": (
        ["layout.colocated_tp=2", "vision.codebook_size=15"],
        2,
        "tp=2 does not divide the codebook's size=15",
    ),
    "seq_len": ([FORKED, "data.seq_len=201"], 4, "data.seq_len=201 is not a multiple of 2"),
    "absent group": (
        ["phases.align.train.trainable=[projector, text_head]"],
        1,
        "train.trainable: the model has no text_head, since model.tie_word_embeddings",
    ),
    "muon on the host": (
        ["train={optimizer: muon, deepspeed: {zero_optimization: {offload_optimizer: {device: cpu}}}}"],
        1,
        "offload_optimizer.device=cpu: train.optimizer=muon",
    ),
    "nothing trains": (
        ["phases.align.train={trainable: [understanding], global_batch_size: {understanding: 0}}"],
        1,
        "train.trainable=['understanding']: nothing would train",
    ),
    "no gradients to balance": (
        ["phases.align.train={trainable: [rq_head], loss_weighting: gradnorm}"],
        1,
        "train.loss_weighting=gradnorm balances gradients that reach the trunk, and train.trainable=['rq_head']",
    ),
    "a loss without a gradient": (
        ["train={loss_weighting: gradnorm, loss_weights: {generation: 0}}"],
        1,
        "train.loss_weights.generation=0: train.loss_weighting=gradnorm cannot balance",
    ),
    "no source": (["data.generation=[]"], 1, "data.generation: no source"),
    "no branch": (["model.tasks=[understanding]"], 1, "train.global_batch_size.generation=2: model.tasks has no"),
    "no sequences": (
        ["train.global_batch_size={understanding: 0, generation: 0}"],
        1,
        "a step needs at least one packed sequence",
    ),
    "separate first layers": (
        ["layout=forked", "model.separate_first_layers=1"],
        3,
        "layout.kind=forked: model.separate_first_layers=1, but the trunk of a forked layout has shared layers only",
    ),
    "no phases": (["phases={}"], 1, "phases: the recipe has none"),
}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"run": {"name": "run", "folder": str(tmp_path)}, **RECIPE}))
    return path


@pytest.mark.parametrize("command", ["train", "submit", "plan"])
@pytest.mark.parametrize(("overrides", "num_ranks", "message"), REFUSED.values(), ids=REFUSED)
def test_recipes_that_cannot_train_are_refused_with_one_message(
    recipe, command, overrides, num_ranks, message, monkeypatch, capsys
):
    def start_ranks(*arguments):
        raise AssertionError("ranks were started")

    monkeypatch.setattr("pipelines.launch.ranks.run_ranks", start_ranks)
    options = {
        "train": ["--ranks", num_ranks],
        "submit": ["--nodes", "1", "--ranks-per-node", num_ranks, "--dry-run"],
        "plan": ["--gpus", num_ranks],
    }
    code = cli.main([command, str(recipe), *overrides, *map(str, options[command])])
    said = capsys.readouterr()
    assert message in said.err + (said.out if command == "plan" else ""), said.err
    assert code == 2 or command == "plan"  # which finds another layout, where there is one


@pytest.mark.parametrize("number", [1, 2])
def test_ranks_of_torchrun_are_checked_in_their_number(recipe, monkeypatch, capsys, number):
    rank = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 3 * number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in rank.items():
        monkeypatch.setenv(name, str(value))
    assert cli.main(["train", str(recipe)]) == 2
    assert f"is not a multiple of the {3 * number} data-parallel replicas" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "longer", "unifork_0.5b"])
@pytest.mark.parametrize(
    "overrides",
    [(), ("data.num_lanes=6",), pytest.param(("train.global_batch_size.generation=48",), marks=pytest.mark.slow)],
)
def test_recommended_layouts_can_train(name, overrides):
    """On 1 to 128 devices, the recommended layout passes, or the plan says what it would take."""
    path = Path(pipelines.__file__).parent / "recipes" / f"{name}.yaml"
    recipe = read_recipe(path, overrides)
    workload, num_planned = workload_of(recipe, None), 0
    for num_devices in range(1, 129):
        try:
            plan = plan_for(recipe, workload, PROFILES["h100"], num_devices=num_devices)
        except ConfigError as error:
            assert "multiple of" in str(error) or "raise train.global_batch_size" in str(error)
            continue
        num_planned += 1
        for candidate in plan.candidates:
            check_recipe(recipe.model_copy(update={"layout": candidate.config}), candidate.num_ranks)
    assert num_planned > 3


def test_a_faster_layout_that_cannot_train_is_named_with_its_remedy(capsys):
    path = Path(pipelines.__file__).parent / "recipes" / "demo.yaml"
    sizes = "train.global_batch_size={understanding: 8, generation: 8}"
    phases = "phases={joint: {}}"
    assert cli.main(["plan", str(path), sizes, phases, "data.num_lanes=2", "--gpus", "8"]) == 0
    shown = capsys.readouterr().out
    assert "faster, but data.num_lanes=2 is not a multiple of the 8" in shown


def test_recipes_are_checked_without_torch():
    program = "import sys, pipelines.check_recipe; sys.exit('torch' in sys.modules or 'megatron' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
