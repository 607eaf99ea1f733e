"""A folder of trained weights: loaded, used, and refused with its fault."""

import shutil

import numpy as np
import pytest
import torch

from tests.tiny import DIMENSIONS, tiny_config, tiny_model, tiny_tokenizer
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import CheckpointError, ConfigError, TokenizerError
from ufork.infer.config import AnswerConfig, DrawConfig
from ufork.infer.model import TEXT_FOLDER, VISION_FOLDER, TrainedModel
from ufork.model.weights import WEIGHTS_NAME, WeightsConfig, save_weights
from ufork.vision.autoencoder import RQVAE
from ufork.vision.codec import ImageCodec
from ufork.vision.config import VisionConfig
from ufork.vocabulary import Task

PROMPTS = ["a dog", "two red cats", "a house"]


def save_codec(folder, **changes):
    torch.manual_seed(0)
    sizes = {"image_px": 16, "patch_px": 8, "hidden_width": 16, **DIMENSIONS.model_dump(exclude={"vocab_size"})}
    ImageCodec(RQVAE(VisionConfig(**sizes | changes))).save(folder)


def save_trained(folder, config):
    weights = {name: parameter.detach() for name, parameter in tiny_model(config).named_parameters()}
    save_weights(folder, weights, WeightsConfig(model=config, dimensions=DIMENSIONS))
    tiny_tokenizer().save(folder / TEXT_FOLDER)
    save_codec(folder / VISION_FOLDER)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "weights"
    save_trained(folder, tiny_config())
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "weights")


def test_a_loaded_model_has_the_weights_and_the_codebook(saved):
    loaded = TrainedModel.load(saved)
    assert loaded.tasks == tuple(Task) and not loaded.model.training
    for name, expected in tiny_model().named_parameters():
        assert torch.equal(dict(loaded.model.named_parameters())[name], expected), name
    held = [buffer for name, buffer in loaded.model.named_buffers() if name.endswith("codebook_KE")]
    assert len(held) == 2 and all(torch.equal(buffer, loaded.codec.codebook) for buffer in held)


def test_drawings_are_one_a_prompt_and_follow_from_the_seed(saved):
    model = TrainedModel.load(saved)
    config = DrawConfig(seed=3, batch_prompts=2)
    images = model.draw(PROMPTS, config)
    assert (images.shape, images.dtype) == ((3, 16, 16, 3), np.uint8)
    assert np.array_equal(images, model.draw(PROMPTS, config))
    assert not np.array_equal(images, model.draw(PROMPTS, DrawConfig(seed=4, batch_prompts=2)))


def test_answers_are_one_a_question_whatever_the_batches(saved):
    model = TrainedModel.load(saved)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    questions = ["what is this?", "how many dogs?", "where?"]
    answers = model.answer(images, questions, AnswerConfig(max_tokens=4))
    assert answers == model.answer(images, questions, AnswerConfig(max_tokens=4, batch_questions=2))
    assert len(answers) == 3 and all(isinstance(answer, str) for answer in answers)


@pytest.mark.parametrize(
    ("missing", "error"),
    [(WEIGHTS_NAME, CheckpointError), (TEXT_FOLDER, TokenizerError), (VISION_FOLDER, TokenizerError)],
)
def test_what_is_missing_is_named(folder, missing, error):
    part = folder / missing
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    with pytest.raises(error, match=missing):
        TrainedModel.load(folder)


@pytest.mark.parametrize(
    "changes",
    [{"codebook_size": 17}, {"code_width": 9}, {"codes_per_position": 2}],
)
def test_an_image_codec_of_another_kind_is_refused(folder, changes):
    save_codec(folder / VISION_FOLDER, **changes)
    with pytest.raises(CheckpointError, match="image codec"):
        TrainedModel.load(folder)


def test_a_text_tokenizer_with_more_tokens_than_embeddings_is_refused(folder):
    TextTokenizer.train(map(str, range(999)), vocab_size=310).save(folder / TEXT_FOLDER)
    with pytest.raises(CheckpointError, match="text tokenizer has 310 tokens, the weights embed 300"):
        TrainedModel.load(folder)


def test_an_expert_refuses_the_other_task(tmp_path):
    images = np.zeros((1, 16, 16, 3), np.uint8)
    save_trained(tmp_path / "painter", tiny_config(tasks=(Task.GENERATION,)))
    with pytest.raises(ConfigError, match="no understanding branch"):
        TrainedModel.load(tmp_path / "painter").answer(images, ["what?"])
    save_trained(tmp_path / "reader", tiny_config(tasks=(Task.UNDERSTANDING,)))
    with pytest.raises(ConfigError, match="no generation branch"):
        TrainedModel.load(tmp_path / "reader").draw(["a dog"])


@pytest.mark.parametrize("prompts", [[], [" "], ["a dog", ""]])
def test_empty_prompts_are_refused(saved, prompts):
    with pytest.raises(ConfigError, match="at least one prompt"):
        TrainedModel.load(saved).draw(prompts)
