"""Drawings during training: on the rank's device in the phase's precision, and nothing of them stays in memory."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.training import _drawing
from tests.stages import initial_model
from tests.tiny import DIMENSIONS, tiny_config, tiny_model, tiny_tokenizer
from ufork.infer.config import DrawConfig
from ufork.infer.model import TrainedModel
from ufork.infer.steps import EagerSteps
from ufork.report.grid import grid_of
from ufork.train import inference_model
from ufork.train.config import TrainConfig
from ufork.vision.autoencoder import RQVAE
from ufork.vision.codec import ImageCodec
from ufork.vision.config import VisionConfig
from ufork.vocabulary import Task

PROMPTS = ("a dog", "two red cats")


def drawing(device="cpu", precision="auto", native_bf16=False, tasks=tuple(Task), prompts=PROMPTS):
    torch.manual_seed(0)
    sizes = {"image_px": 16, "patch_px": 8, "hidden_width": 16, **DIMENSIONS.model_dump(exclude={"vocab_size"})}
    config = tiny_config(tasks=tasks)
    recipe = SimpleNamespace(model=config, evaluate=SimpleNamespace(draw=DrawConfig()))
    phase = SimpleNamespace(
        train=TrainConfig(precision=precision, drawing_prompts=prompts),
        initial=initial_model(config),
        tokenizer=tiny_tokenizer(),
    )
    world = SimpleNamespace(device=torch.device(device), native_bf16=native_bf16)
    return _drawing(recipe, phase, ImageCodec(RQVAE(VisionConfig(**sizes))), world)


@pytest.fixture
def of_weights(monkeypatch):
    """Models that were made, weakly, and the arguments that they were made with."""
    made, arguments = [], []
    make = TrainedModel.of_weights.__func__

    def watched(cls, *args, **options):
        arguments.append(options | {"codec": args[3]})
        model = make(cls, *args, **options | {"device": torch.device("cpu")})
        made.append(weakref.ref(model.model))
        return model

    monkeypatch.setattr(TrainedModel, "of_weights", classmethod(watched))
    return SimpleNamespace(made=made, arguments=arguments)


def weights():
    return {name: parameter.detach() for name, parameter in tiny_model().named_parameters()}


def test_it_is_the_drawing_of_the_weights_with_signs_of_life_and_leaves_nothing(of_weights):
    signs = []
    gc.disable()
    try:
        grid = drawing()(weights(), lambda: signs.append(1))
        assert of_weights.made[0]() is None, (
            "freed without the garbage collector, which may not run before the next step"
        )
    finally:
        gc.enable()
    assert len(signs) == 1 + 3, "after loading and after each of the later positions"
    expected = TrainedModel(tiny_model(), tiny_tokenizer(), of_weights.arguments[0]["codec"])
    expected.model.set_codebook(expected.codec.codebook)
    assert np.array_equal(grid, grid_of(expected.draw(list(PROMPTS), DrawConfig())))


@pytest.mark.parametrize(
    ("device", "precision", "native", "dtype"),
    [
        ("cuda:0", "auto", True, torch.bfloat16),
        ("cuda:0", "auto", False, torch.float32),
        ("cuda:0", "fp32", True, torch.float32),
        ("cpu", "bf16", True, torch.float32),
    ],
)
def test_the_device_is_the_ranks_and_the_precision_the_phases(
    of_weights, monkeypatch, device, precision, native, dtype
):
    monkeypatch.setattr(ImageCodec, "on", lambda codec, on: codec if on == torch.device(device) else None)
    monkeypatch.setattr(inference_model, "find_attention_kernel", lambda *asked: SimpleNamespace(kernel=asked))
    monkeypatch.setattr(TrainedModel, "draw", lambda *_: np.zeros((1, 16, 16, 3), np.uint8))
    drawing(device, precision, native)(weights(), lambda: None)
    (found,) = of_weights.arguments
    assert (found["device"], found["dtype"]) == (torch.device(device), dtype)
    assert found["kernel"] == (torch.device(device), dtype) and found["codec"] is not None
    assert isinstance(found["steps"], EagerSteps), "a capture that fails leaves a process unfit for training"
    assert found["steps"].is_static == (device != "cpu")


def test_without_prompts_or_a_generation_branch_nothing_is_drawn():
    assert drawing(prompts=()) is None
    assert drawing(tasks=(Task.UNDERSTANDING,)) is None
