"""`ufork draw` and `ufork answer`: what they write, and which arguments they refuse."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import cli
from tests.infer.test_model import save_trained
from tests.tiny import tiny_config
from ufork.infer.model import DRAW_FILE, TrainedModel


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "weights"
    save_trained(folder, tiny_config())
    return folder


def draw(weights, out, *arguments, prompt="a dog"):
    return cli.main(["draw", "--checkpoint", str(weights), "--prompt", prompt, "--out", str(out), *arguments])


def answer(weights, image, question="what is this?"):
    return cli.main(["answer", "--checkpoint", str(weights), "--image", str(image), "--question", question])


@pytest.mark.parametrize(
    ("name", "form"), [("x.png", "PNG"), ("x.jpg", "JPEG"), ("x.JPEG", "JPEG"), ("new/x.webp", "WEBP")]
)
def test_the_file_type_follows_the_name(weights, tmp_path, name, form):
    assert draw(weights, tmp_path / name) == 0
    assert Image.open(tmp_path / name).format == form


@pytest.mark.parametrize("name", ["x.gif", "x", "x.pdf", "png"])
def test_other_file_types_are_refused_before_the_model_is_read(tmp_path, name, capsys):
    assert draw(tmp_path / "no-weights", tmp_path / name) == 2
    assert ".png, .jpg, .jpeg, .webp" in capsys.readouterr().err


def test_temperature_0_is_greedy(weights, tmp_path):
    for number, seed in enumerate((0, 9)):
        assert draw(weights, tmp_path / f"{number}.png", "--temperature", "0", "--seed", str(seed)) == 0
    first, second = (np.asarray(Image.open(tmp_path / f"{number}.png")) for number in (0, 1))
    np.testing.assert_array_equal(first, second)


def test_the_weights_say_how_drawings_are_sampled_and_options_change_single_values(weights, tmp_path):
    for name, arguments in (("default", ()), ("seeded", ("--seed", "9")), ("hot", ("--temperature", "5"))):
        folder = shutil.copytree(weights, tmp_path / name)
        (folder / DRAW_FILE).write_text('{"temperature": 0.0}')
        assert draw(folder, tmp_path / f"{name}.png", *arguments) == 0
    default, seeded, hot = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("default", "seeded", "hot"))
    np.testing.assert_array_equal(default, seeded)  # greedy
    assert (default != hot).any()


@pytest.mark.parametrize(
    ("option", "value"), [("guidance", "inf"), ("guidance", "nan"), ("seed", str(10**20)), ("temperature", "-1")]
)
def test_values_out_of_range_are_refused_before_the_model_is_read(tmp_path, option, value, capsys):
    assert draw(tmp_path / "no-weights", tmp_path / "x.png", f"--{option}", value) == 2
    assert option in capsys.readouterr().err


def test_a_very_long_prompt_is_refused(weights, tmp_path, capsys):
    assert draw(weights, tmp_path / "x.png", prompt="a" * 100_000) == 2
    assert "100,000 characters" in capsys.readouterr().err


def test_a_text_longer_than_all_sequences_of_training_is_said(weights, tmp_path, caplog):
    """Row W; the run's config has the length, and weights elsewhere have none."""
    run = tmp_path / "run"
    shutil.copytree(weights, run / "phases" / "all" / "weights")
    (run / "config.yaml").write_text("phases: {all: {data: {seq_len: 40}}}")
    Image.new("RGB", (5, 9)).save(tmp_path / "x.png")
    for folder, expected in ((run / "phases" / "all" / "weights", ["prompt", "question"]), (weights, [])):
        caplog.clear()
        assert draw(folder, tmp_path / "y.png") == 0 == draw(folder, tmp_path / "y.png", prompt="a dog " * 9)
        assert answer(folder, tmp_path / "x.png") == 0 == answer(folder, tmp_path / "x.png", "what is this? " * 9)
        said = [record.getMessage() for record in caplog.records if "at most 40 (data.seq_len)" in record.getMessage()]
        assert [message.split()[1] for message in said] == expected


def test_an_existing_folder_is_refused_before_the_model_is_read(tmp_path, capsys):
    (tmp_path / "x.png").mkdir()
    assert draw(tmp_path / "no-weights", tmp_path / "x.png") == 2
    assert "x.png: is a folder; give the name of a picture in it" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "huge", "text", "tiff"])
def test_a_file_that_is_not_an_image_is_named(weights, tmp_path, kind, capsys):
    path = tmp_path / f"{kind}.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge":
        with open(path, "wb") as file:
            file.truncate(3 * 2**30)
    elif kind == "text":
        path.write_text("a dog")
    elif kind == "tiff":
        Image.new("RGB", (4, 4)).save(path, "TIFF")
    assert answer(weights, path) == 1
    assert f"{kind}.png" in capsys.readouterr().err


def test_answers_are_printed_one_per_line_with_control_characters_escaped(weights, tmp_path, capsys, monkeypatch):
    Image.new("RGBA", (5, 9)).save(tmp_path / "x.png")
    monkeypatch.setattr(TrainedModel, "answer", lambda self, images, questions: ["two\nlines", "\x1b[31mred"])
    assert answer(weights, tmp_path / "x.png") == 0
    assert capsys.readouterr().out == "two\\nlines\n\\x1b[31mred\n"


def test_a_device_that_is_not_there_is_refused_before_the_model_is_read(tmp_path, capsys):
    assert draw(tmp_path / "no-weights", tmp_path / "x.png", "--device", "cuda:7") == 2
    assert "device cuda:7: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        draw(tmp_path, tmp_path / "x.png", "--precision", "fp16")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_computes_in_the_precision_asked_for(weights, tmp_path, precision, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        TrainedModel, "draw", lambda model, *_: loaded.append(model.precision) or np.zeros((1, 16, 16, 3), np.uint8)
    )
    assert draw(weights, tmp_path / "x.png", "--device", "cpu", "--precision", precision) == 0
    assert loaded == [precision]


def test_a_gpu_with_too_little_memory_is_an_error_with_a_remedy(weights, tmp_path, monkeypatch, capsys):
    def draw_too_much(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")

    monkeypatch.setattr(TrainedModel, "draw", draw_too_much)
    assert draw(weights, tmp_path / "x.png", "--device", "cpu") == 1
    message = capsys.readouterr().err
    assert "Tried to allocate 2.00 GiB. Give fewer prompts at a time, or use --device cpu" in message
    assert "and more" not in message
