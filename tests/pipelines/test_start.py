"""A run that starts from a folder of weights: what is checked, and what its first phase trains."""

import pytest
import torch
import yaml

from pipelines import cli
from pipelines.check_recipe import check_recipe, nominal_dimensions
from pipelines.recipe import Recipe, read_recipe
from pipelines.start import check_start_tokenizer
from pipelines.tokenizers import make_text_tokenizer
from tests.convert.tiny_qwen import SMALL, save_qwen
from tests.tiny import DIMENSIONS, tiny_config, tiny_model, tiny_tokenizer
from tests.tiny_run import RECIPE, make_run, train
from ufork.convert.qwen import convert
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import CheckpointError, ConfigError, TokenizerError
from ufork.infer.model import TEXT_FOLDER
from ufork.model.weights import WEIGHTS_NAME, WeightsConfig, load_weights, save_weights


@pytest.fixture
def start(tmp_path):
    """Returns a folder of weights of the tiny model, with a tokenizer and more rows than it needs."""
    dimensions = DIMENSIONS.model_copy(update={"vocab_size": 320})
    weights = {name: parameter.detach() for name, parameter in tiny_model().named_parameters()}
    save_weights(tmp_path / "start", weights, WeightsConfig(model=tiny_config(), dimensions=dimensions))
    tiny_tokenizer().save(tmp_path / "start" / TEXT_FOLDER)
    return tmp_path / "start"


def recipe_of(start, **model) -> Recipe:
    """Returns a recipe whose run is beside `start`."""
    sizes = DIMENSIONS.model_dump(exclude={"vocab_size"})
    values = {
        **RECIPE,
        "run": {"name": "tiny", "folder": str(start.parent)},
        "model": {**RECIPE["model"], "start": str(start), **model},
        "vision": {"image_px": 16, "patch_px": 8, **sizes},
    }
    (start.parent / "recipe.yaml").write_text(yaml.safe_dump(values))
    return read_recipe(start.parent / "recipe.yaml")


def test_a_recipe_of_the_same_model_is_accepted_with_the_rows_of_the_start(start):
    recipe = recipe_of(start, initializer_range=0.5, rq_head={**RECIPE["model"]["rq_head"], "dropout": 0.4})
    check_recipe(recipe, 1)
    assert nominal_dimensions(recipe).vocab_size == 320


def test_every_value_that_is_another_one_is_named(start):
    recipe = recipe_of(start, hidden_size=64, use_qk_norm=True)
    recipe = recipe.model_copy(update={"vision": recipe.vision.model_copy(update={"codebook_size": 32})})
    with pytest.raises(ConfigError) as caught:
        check_recipe(recipe, 1)
    message, *faults = str(caught.value).splitlines()
    assert message.startswith(f"model.start={start}: 4 value(s)")
    assert faults == [
        "  model.head_dim: 16 in the recipe, 8 in the start",
        "  model.hidden_size: 64 in the recipe, 32 in the start",
        "  model.use_qk_norm: True in the recipe, False in the start",
        "  vision.codebook_size: 32 in the recipe, 16 in the start",
    ]


def test_a_start_that_does_not_exist_yet_can_be_planned_with(tmp_path):
    check_recipe(recipe_of(tmp_path / "later"), 1)


def test_a_damaged_start_is_named_with_its_key(start):
    (start / WEIGHTS_NAME).unlink()
    with pytest.raises(CheckpointError, match=f"model.start: {start}: no {WEIGHTS_NAME}"):
        check_recipe(recipe_of(start), 1)


def test_a_run_without_a_start_is_stored_as_before(start):
    assert "start" not in Recipe.from_mapping({"run": {"name": "tiny"}}, origin="test").model.model_dump()
    assert recipe_of(start).model.model_dump()["start"] == str(start)


def test_the_text_tokenizer_is_that_of_the_start(start):
    recipe = recipe_of(start)
    make_text_tokenizer(recipe)
    made = TextTokenizer.load(recipe.run_folder.text_tokenizer)
    assert made.equals(TextTokenizer.load(start / TEXT_FOLDER))
    check_start_tokenizer(start, made)


def test_another_text_tokenizer_is_refused(start):
    other = TextTokenizer.train(["an aardvark, an aardvark, an aardvark"], vocab_size=300)
    with pytest.raises(TokenizerError, match="text.folder: the run's text tokenizer is not that of model.start"):
        check_start_tokenizer(start, other)


@pytest.fixture(scope="module")
def run_from_qwen(tmp_path_factory):
    """Returns a run of a recipe that starts from a converted Qwen3 model, its recipe, and the start."""
    folder = tmp_path_factory.mktemp("runs")
    save_qwen(folder / "theirs", 3, tied=True)
    convert(folder / "theirs", folder / "start", SMALL)
    path, run = make_run(folder, "tiny")
    config = load_weights(folder / "start")[1]
    sections = {
        "model": {**config.model.model_dump(mode="json"), "start": str(folder / "start")},
        "vision": {"image_px": 16, "patch_px": 8, **config.dimensions.model_dump(exclude={"vocab_size"})},
    }
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **sections}))
    return run, path, folder / "start"


def require_body_of_start(weights, start):
    expected, _ = load_weights(start)
    assert weights.keys() == expected.keys()
    trained = [name for name in weights if not torch.equal(weights[name], expected[name])]
    assert trained and all("projector" in name or "branches.generation.head" in name for name in trained)


FORKED = ("layout.kind=forked", "layout.trunk={tp: 2}")


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "layout"), [(2, ()), (4, FORKED)], ids=["colocated", "forked"])
def test_a_phase_that_freezes_the_body_leaves_that_of_the_start(run_from_qwen, tmp_path, ranks, layout):
    run, path, start = run_from_qwen
    every = "phases.align.train.checkpoint={every_steps: 2}"
    train(path, "--phase", "align", "--ranks", ranks, *layout, every, "train.resume=never")
    require_body_of_start(load_weights(run.phase("align").weights)[0], start)
    checkpoint = min(run.phase("align").checkpoints.glob("step-*"))
    assert cli.main(["checkpoint", "export", str(checkpoint), "--output", str(tmp_path / "exported")]) == 0
    require_body_of_start(load_weights(tmp_path / "exported")[0], start)
