"""Runs the verbs in the order of `ufork demo` on a recipe that takes seconds, and checks what each writes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines import cli
from pipelines.recipe import read_recipe
from pipelines.tokenizers import _heldout_images
from ufork.data.shards.source import ShardSource
from ufork.data.text_tokenizer import TextTokenizer
from ufork.vocabulary import Task

ROOT = Path(__file__).parent.parent.parent
RECIPE = {
    "prepare": {
        "scenes": {"num_kinds": 5, "num_tints": 3, "num_train_per_task": 300, "num_heldout_per_task": 90},
        "emoji": {"num_train_per_task": 60, "num_heldout_per_task": 20},
    },
    "vision": {"hidden_width": 32, "codebook_size": 64, "code_width": 16, "fit": {"steps": 30, "batch_images": 16}},
    "text": {"vocab_size": 400},
    "model": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "trunk_layers": 1,
        "understanding_layers": 1,
        "generation_layers": 1,
        "rq_head": {"hidden_size": 32, "attention_size": 32, "num_attention_heads": 4, "num_blocks": 1},
    },
    "data": {
        "seq_len": 512,
        "num_lanes": 2,
        "understanding": [{"folder": "codes/scenes/train"}, {"folder": "codes/emoji/train", "weight": 0.2}],
        "generation": [{"folder": "codes/scenes/train"}],
    },
    "train": {
        "steps": 4,
        "global_batch_size": {"understanding": 1, "generation": 1},
        "wandb": {"mode": "offline"},
        "log_every_steps": 2,
        "draw_every_steps": 4,
        "drawing_prompts": ["a dog", "a cat"],
    },
    "phases": {"joint": {}},
    "evaluate": {
        "scenes": {"questions_per_skill": 5, "drawings_per_skill": 4, "detector": {"steps": 5}},
        "emoji": {"questions": 5, "drawings": 2},
        "heldout": {"samples_per_source": 5},
    },
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump({"run": {"name": "tiny", "folder": str(folder)}, **RECIPE}))
    return file


@pytest.fixture(scope="module")
def encoded(path):
    """The recipe after everything that comes before training."""
    for verb in (["prepare"], ["tokenizer", "text"], ["tokenizer", "fit"], ["tokenizer", "encode"]):
        assert cli.main([*verb, str(path)]) == 0
    return read_recipe(path)


def test_recipes_that_ship_are_read(subtests):
    for file in sorted((ROOT / "pipelines/recipes").glob("*.yaml")):
        with subtests.test(file.name):
            assert read_recipe(file).phases


@pytest.mark.slow
def test_tokenizers_are_made_from_the_shards(encoded):
    folder = encoded.run_folder
    tokenizer = TextTokenizer.load(folder.text_tokenizer)
    assert tokenizer.size == 400
    assert tokenizer.decode(tokenizer.encode("a dog left of a cat")) == "a dog left of a cat"
    report = json.loads((folder.vision_tokenizer / "fit.json").read_text())
    assert report["psnr_db"] > 10


@pytest.mark.slow
def test_every_sample_is_encoded(encoded):
    folder = encoded.run_folder
    for source, task in (("scenes", Task.GENERATION), ("emoji", Task.UNDERSTANDING)):
        for split in ("train", "heldout"):
            images = ShardSource(folder.shards / source / split, task)
            codes = ShardSource(folder.codes / source / split, task)
            assert len(images) == len(codes) > 0
            assert codes[0].codes.shape == (8, 8, 4)
            assert (codes[0].id, codes[0].prompt, codes[0].turns) == (images[0].id, images[0].prompt, images[0].turns)


@pytest.mark.slow
def test_tokenizer_fitted_on_the_same_is_kept_and_on_other_values_is_not(encoded, path):
    weights = encoded.run_folder.vision_tokenizer / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert cli.main(["tokenizer", "fit", str(path)]) == 0
    assert weights.stat().st_mtime_ns == before
    assert cli.main(["tokenizer", "fit", str(path), "vision.fit.steps=2", f"run.folder={path.parent}"]) == 0
    assert weights.stat().st_mtime_ns != before
    assert cli.main(["tokenizer", "fit", str(path)]) == 0  # as the other tests expect it; the same seed, the same codec
    assert cli.main(["tokenizer", "encode", str(path)]) == 0


@pytest.mark.slow
def test_measured_images_are_held_out_ones_of_every_source(encoded):
    images = _heldout_images(encoded.run_folder, 64, seed=0)
    assert images.shape[1:] == (64, 64, 3) and images.dtype == np.uint8


@pytest.mark.slow
def test_the_detector_is_fitted_before_there_are_weights(encoded, path, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "shards").symlink_to(encoded.run_folder.shards)
    values = (f"run.folder={tmp_path}", "run.name=other", "evaluate.scenes.detector.seed=5")
    assert cli.main(["evaluate", str(path), *values, "--only-detector"]) == 0
    assert {file.name for file in folder.iterdir()} == {"shards", "detector"}
    written = (folder / "detector" / "words.json").stat().st_mtime_ns
    assert cli.main(["evaluate", str(path), *values, "run.seed=1", "--only-detector"]) == 0
    assert (folder / "detector" / "words.json").stat().st_mtime_ns == written
    assert cli.main(["evaluate", str(path), *values[:2], "--only-detector"]) == 0
    assert (folder / "detector" / "words.json").stat().st_mtime_ns != written, "fitted again for another seed"


def test_tokenizer_before_prepare_says_so(tmp_path, path, capsys):
    assert cli.main(["tokenizer", "text", str(path), f"run.folder={tmp_path}"]) == 1
    assert "run `ufork prepare` first" in capsys.readouterr().err


@pytest.mark.slow
def test_training_evaluation_and_report_follow(encoded, path, capsys):
    trained = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "train", str(path)], capture_output=True, text=True, check=False
    )
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr.startswith("machine: "), "what the machine has heads the log"
    folder = encoded.run_folder
    assert Image.open(folder.phase("joint").drawing(4)).size == (2 * 64 + 6, 64 + 4)
    assert cli.main(["evaluate", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "chance" in shown and "ceiling" in shown and "Held-out loss" in shown
    assert cli.main(["evaluate", str(path), "prepare.scenes=null", "prepare.emoji=null"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Held-out loss, understanding (nats per text token)") and "ceiling" in shown
    assert cli.main(["evaluate", str(path)]) == 0
    assert capsys.readouterr().out.startswith("Scenes, answers (right)"), "as before, from the cases that were kept"
    assert cli.main(["report", str(path)]) == 0
    page = folder.path / "report.html"
    assert capsys.readouterr().out == f"report: {page}\n"
    assert "tiny" in page.read_text()
    assert list(yaml.safe_load(folder.config.read_text())) == [
        section for section in type(encoded).model_fields if section != "demo"
    ]


@pytest.mark.parametrize("without", [[], ["prepare.scenes=null", "prepare.emoji=null"]])
def test_evaluation_without_held_out_samples_or_phases_is_refused(path, without, capsys):
    assert cli.main(["evaluate", str(path), "run.name=empty", *without]) == 2
    assert "nothing to evaluate" in (shown := capsys.readouterr().err) and "evaluate.heldout.folders" in shown
    assert cli.main(["evaluate", str(path), "phases={}"]) == 2
    assert "phases" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("evaluate.questions_per_skill=3", "evaluate.scenes.questions_per_skill"),
        ("evaluate.detector.steps=3", "evaluate.scenes.detector"),
        ("evaluate.emoji_drawings=3", "evaluate.emoji.drawings"),
        ("evaluate.examples_per_skill=3", "evaluate.examples_per_group"),
    ],
)
def test_keys_of_evaluations_before_benchmarks_are_refused_with_their_new_names(path, key, name, capsys):
    assert cli.main(["evaluate", str(path), key]) == 2
    assert f"this key is now called '{name}'" in capsys.readouterr().err
