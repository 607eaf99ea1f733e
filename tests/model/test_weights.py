"""Weights on disk and back, and every way they can be wrong."""

import json

import pytest
import torch

from tests.tiny import DIMENSIONS, tiny_config, tiny_model
from ufork.errors import CheckpointError, NonFiniteError, StorageError
from ufork.model.weights import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    WeightsConfig,
    adopt_weights,
    load_weights,
    meta_model,
    put_weights,
    save_weights,
)

CONFIG = WeightsConfig(model=tiny_config(), dimensions=DIMENSIONS)


def weights_of(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.fixture
def folder(tmp_path):
    save_weights(tmp_path / "weights", weights_of(tiny_model(seed=1)), CONFIG)
    return tmp_path / "weights"


def test_weights_and_config_are_loaded_as_saved(folder):
    weights, config = load_weights(folder)
    model = tiny_model(config.model, seed=2)
    put_weights(model, weights, origin=str(folder))
    assert config == CONFIG
    for name, expected in weights_of(tiny_model(seed=1)).items():
        assert torch.equal(dict(model.named_parameters())[name], expected), name
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]


@pytest.mark.parametrize("name", [WEIGHTS_NAME, CONFIG_NAME])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xfe", "half"])
def test_missing_and_damaged_files_are_named(folder, name, content):
    if content is None:
        (folder / name).unlink()
    else:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(CheckpointError, match=str(folder)):
        load_weights(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_never_written(folder, value):
    before = (folder / WEIGHTS_NAME).read_bytes()
    weights = weights_of(tiny_model(seed=2))
    weights["trunk.projector.first.weight"][0, :2] = value
    with pytest.raises(NonFiniteError, match=r"trunk.projector.first.weight holds 2 of \d+ values"):
        save_weights(folder, weights, CONFIG)
    assert (folder / WEIGHTS_NAME).read_bytes() == before


def test_a_config_of_another_program_is_named_with_its_key(folder):
    (folder / CONFIG_NAME).write_text('{"hidden_size": 896}')
    with pytest.raises(CheckpointError, match=rf"{CONFIG_NAME}.*\n.*hidden_size"):
        load_weights(folder)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"trunk_layers": 10**6}, "trunk_layers"),
        ({"head_dim": 2**20, "num_attention_heads": 2**10}, "num_attention_heads times head_dim"),
        ({"trunk_layers": 9}, r"trunk\.stack\.layers\.\d+\..*missing"),
        ({"hidden_size": 2**23}, r"has shape \[.*expected"),
    ],
)
def test_sizes_that_are_not_the_files_are_refused_before_anything_has_them(folder, changes, fault):
    """Row M13."""
    config = json.loads((folder / CONFIG_NAME).read_text())
    config["model"] |= changes
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"(?s){fault}"):
        load_weights(folder)


def without(weights):
    del weights["trunk.projector.first.bias"]


def with_another(weights):
    weights["trunk.projector.third.bias"] = torch.zeros(1)


def of_another_shape(weights):
    weights["trunk.projector.first.bias"] = torch.zeros(7)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (without, "trunk.projector.first.bias"),
        (with_another, "trunk.projector.third.bias"),
        (of_another_shape, r"trunk.projector.first.bias has shape \[7\], the model's has \[32\]"),
    ],
)
def test_weights_of_another_model_are_named(change, fault):
    weights = weights_of(tiny_model())
    change(weights)
    with pytest.raises(CheckpointError, match=f"here: .*{fault}"):
        put_weights(tiny_model(), weights, origin="here")
    with pytest.raises(CheckpointError, match=f"here: .*{fault}"):
        adopt_weights(meta_model(CONFIG), weights, origin="here")


def test_adopted_weights_are_not_copied_unless_they_are_in_another_precision():
    weights = weights_of(tiny_model(seed=1))
    weights["branches.generation.norm.weight"] = weights["branches.generation.norm.weight"].bfloat16()
    model = meta_model(CONFIG)
    adopt_weights(model, weights, origin="here")
    parameters = dict(model.named_parameters())
    copied = {name for name, weight in weights.items() if parameters[name].data_ptr() != weight.data_ptr()}
    assert copied == {"branches.generation.norm.weight"}
    assert all(parameter.dtype == torch.float32 for parameter in parameters.values())
    assert all(torch.equal(parameters[name], weight.float()) for name, weight in weights.items())
    assert model.branches["understanding"].head.weight is model.trunk.token_embedding.weight


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        save_weights(tmp_path / "file", weights_of(tiny_model()), CONFIG)


def test_a_save_that_fails_leaves_the_old_weights(folder, monkeypatch):
    def full_disk(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = (folder / WEIGHTS_NAME).read_bytes()
    monkeypatch.setattr("ufork.tensor_file.save_file", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        save_weights(folder, weights_of(tiny_model(seed=3)), CONFIG)
    assert (folder / WEIGHTS_NAME).read_bytes() == before
