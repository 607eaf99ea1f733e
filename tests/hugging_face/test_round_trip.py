"""A trained run, exported and loaded in processes of their own, with and without ufork's code."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import cli
from tests.hugging_face.exported import own_logits
from tests.tiny_run import make_run, train
from ufork.infer.model import TrainedModel
from ufork.vocabulary import Task

pytestmark = pytest.mark.slow
ABSENT = "deepspeed,megatron"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe, run = make_run(tmp_path_factory.mktemp("runs"), "tiny")
    train(recipe)
    return run


@pytest.mark.parametrize("absent", [f"{ABSENT},ufork,pydantic,simplejpeg,xxhash", ABSENT], ids=["remote", "installed"])
def test_a_fresh_process_computes_what_ufork_does(run, tmp_path, absent):
    folder, out = tmp_path / "exported", tmp_path / "out.pt"
    assert cli.main(["export", str(run.path), "--format", "hf", "--to", str(folder)]) == 0
    script = Path(__file__).with_name("fresh_process.py")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, str(script), str(folder), absent, str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(out)

    weights = run.phase("all").weights
    own = TrainedModel.load(weights)
    assert np.array_equal(found["drawings"].numpy(), own.draw(["a dog", "a red cat"], seeds=[4, 5]))
    assert found["answer"] == own.answer(found["drawings"].numpy()[:1], ["what is this?"])[0]
    codes = found["codes"].numpy()
    assert np.array_equal(codes, own.codec.encode(found["drawings"].numpy()[:1])[0])
    text, drawn = found["text tokens"].tolist(), found["drawn tokens"].tolist()
    image_begin = len(drawn) - codes[..., 0].size - 2
    for name, expected in {
        "text logits": own_logits(weights, Task.UNDERSTANDING, text, image_begin=0, codes_YXC=codes),
        "code logits": own_logits(weights, Task.GENERATION, drawn, image_begin=image_begin, codes_YXC=codes),
    }.items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)
