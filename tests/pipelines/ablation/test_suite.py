"""A suite's arms as recipes, and the values that are refused."""

from pathlib import Path

import pytest
import yaml

from pipelines import cli
from pipelines.ablation.cost import cost_of, require_matched
from pipelines.ablation.suite import read_suite, recipe_differences
from tests.pipelines.ablation.tiny_suite import suite_file
from tests.pipelines.test_all_verbs import RECIPE as WITH_SCENES
from ufork.errors import ConfigError

SUITES = sorted((Path(__file__).parents[3] / "pipelines/suites").glob("*.yaml"))


def test_suites_that_ship_are_read_and_matched(subtests):
    for path in SUITES:
        with subtests.test(path.name):
            suite = read_suite(path)
            require_matched({arm: cost_of(recipe) for arm, recipe in suite.recipes.items()}, suite.config.matched)


def test_arms_have_the_values_of_all_then_of_the_command_line_then_their_own(tmp_path):
    path = suite_file(tmp_path, arms={"a": {}, "b": {"train.steps": 7}}, values={"train.steps": 5})
    suite = read_suite(path, ["train.steps=6", "train.learning_rate=0.1"])
    assert [trial.name for trial in suite.trials] == ["a-seed0", "a-seed1", "b-seed0", "b-seed1"]
    assert [trial.recipe.phases["joint"].train.steps for trial in suite.trials] == [6, 6, 7, 7]
    assert suite.trials[2].values == {"train.steps": 7, "train.learning_rate": 0.1}
    assert {trial.recipe.phases["joint"].train.learning_rate for trial in suite.trials} == {0.1}


def test_each_trial_has_its_seed_and_folder_beside_the_data(tmp_path):
    suite = read_suite(suite_file(tmp_path, seeds=[3, 5]), ["run.seed=9"])
    assert suite.folder == tmp_path / "runs" / "tiny" and suite.data.run_folder.path == suite.folder / "data"
    assert suite.data.run.seed == 9
    runs = [(trial.recipe.run_folder.path.name, trial.recipe.run.seed) for trial in suite.trials]
    assert runs == [("shared-seed3", 3), ("shared-seed5", 5), ("y-seed3", 3), ("y-seed5", 5)]


def test_one_detector_scores_all_seeds(tmp_path):
    path = suite_file(tmp_path, values={}, arms={"only": {}})
    recipe = {**WITH_SCENES, "run": {"name": "base", "folder": str(tmp_path), "seed": 4}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert {trial.recipe.evaluate.scenes.detector.seed for trial in read_suite(path).trials} == {4}
    given = read_suite(path, ["evaluate.scenes.detector.seed=2"])
    assert {trial.recipe.evaluate.scenes.detector.seed for trial in given.trials} == {2}
    assert read_suite(path, ["evaluate.scenes=null"]).trials[0].recipe.evaluate.scenes is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {}}, "arms"),
        ({"seeds": [1, 1]}, "each seed once"),
        ({"baselines": ["z"]}, "z is no arm; the arms are shared, y"),
        ({"arms": {"a": {"vision.image_px": 32}}}, "vision.image_px: all arms read the same shards and tokenizers"),
        ({"arms": {"a": {"run.seed": 3}}}, "run.seed: all arms"),
        ({"arms": {"a": {"model.trunk_layer": 3}}}, "arm a: .*nearest known one is 'model.trunk_layers'"),
        ({"arms": {"a": {"model.tasks": ["generation"]}}}, "arm a: .*model.tasks has no understanding"),
        ({"ranks": 3}, "arm shared: .*3 ranks"),
        ({"values": {"train.limit_seconds": 9}}, "arm shared: phases.joint.train.limit_seconds=9: with a time limit"),
        ({"baseline": 2}, "nearest known one is 'baselines'"),
        ({"matched": {"active_parameters": -1}}, "matched.active_parameters"),
        ({"values": {"train.steps=5 #": 9}}, "values.train.steps=5 #.*should match pattern"),
        ({"arms": {"../up": {}}}, "arms.../up.*should match pattern"),
        ({"name": "a/b"}, "name: .*should match pattern"),
    ],
)
def test_a_suite_that_cannot_run_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        read_suite(suite_file(tmp_path, **changes))


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(ConfigError, match="absent.yaml"):
        read_suite(suite_file(tmp_path, recipe="absent.yaml"))


def test_recipes_that_give_one_result_do_not_differ(tmp_path):
    suite = read_suite(suite_file(tmp_path))
    recipe = suite.trials[0].recipe
    stored = recipe.model_dump(mode="json")
    elsewhere = {**stored, "run": {**stored["run"], "folder": "/elsewhere", "name": "other"}}
    assert recipe_differences(elsewhere, recipe, origin="file") == []
    del stored["train"]["beta2"]  # as in a file that was written before the key was added
    assert recipe_differences(stored, recipe, origin="file") == []


def test_differences_of_recipes_are_named(tmp_path):
    suite = read_suite(suite_file(tmp_path))
    shared, _, y, _ = (trial.recipe for trial in suite.trials)
    found = recipe_differences(shared.model_dump(mode="json"), y, origin="file")
    assert "model.trunk_layers was 2, is 1" in found and len(found) == 3
    stored = shared.model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"file: (?s:.*)train\.beta3: unknown key"):
        recipe_differences({**stored, "train": {**stored["train"], "beta3": 0}}, shared, origin="file")


def test_the_verb_refuses_what_does_not_fit(tmp_path, capsys):
    path = suite_file(tmp_path, matched={"total_parameters": 0.01})
    assert cli.main(["ablate", str(path)]) == 2
    assert "matched.total_parameters" in capsys.readouterr().err
    path = suite_file(tmp_path)
    assert cli.main(["ablate", str(path), "--parallel", "0"]) == 2
    assert "--parallel 0" in capsys.readouterr().err
    assert cli.main(["ablate", str(path), "--trial", "4"]) == 2
    assert "--trial 4: the suite's trials are 0 to 3" in capsys.readouterr().err
    assert cli.main(["ablate", str(path), "--trial", "0"]) == 2
    assert "--prepare" in capsys.readouterr().err
