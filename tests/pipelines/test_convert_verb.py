"""`ufork convert`: what it writes, and what it prints."""

import yaml

from pipelines import cli
from tests.convert.tiny_qwen import SMALL, save_qwen
from ufork.model.config import ModelConfig
from ufork.model.weights import load_weights


def test_the_values_of_a_recipe_that_starts_from_it_are_printed(tmp_path, capsys):
    save_qwen(tmp_path / "theirs", 3, tied=False)
    to = str(tmp_path / "ours")
    assert cli.main(["convert", "qwen", str(tmp_path / "theirs"), "--to", to, *SMALL, "generation_layers=2"]) == 0
    first, _, *section = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{to}: 0.1M parameters")
    model = yaml.safe_load("\n".join(section))["model"]
    assert model.pop("start") == to
    assert ModelConfig.from_mapping(model, origin="printed") == load_weights(tmp_path / "ours")[1].model


def test_a_folder_of_something_else_is_an_error(tmp_path, capsys):
    assert cli.main(["convert", "qwen", str(tmp_path), "--to", str(tmp_path / "ours")]) == 1
    assert "config.json: cannot be read" in capsys.readouterr().err
