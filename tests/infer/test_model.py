"""A folder of trained weights: loaded, used, and refused with its fault."""

import shutil
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from tests.golden_files import golden_codec
from tests.tiny import CODEC_SIZES, DIMENSIONS, packed_sequence, tiny_config, tiny_model, tiny_tokenizer
from ufork.data.packing import pack_sequence
from ufork.data.prompts import encode_sample
from ufork.data.shards.sample import Sample
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import CheckpointError, ConfigError, SampleError, TokenizerError
from ufork.infer.config import AnswerConfig, DrawConfig
from ufork.infer.model import DRAW_FILE, MAX_TEXT_CHARS, TEXT_FOLDER, VISION_FOLDER, TrainedModel
from ufork.infer.model import save_trained as save_whole
from ufork.model.initialization import initialize
from ufork.model.unifork import UniFork
from ufork.model.weights import WEIGHTS_NAME, WeightsConfig, load_weights, save_weights
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
    """A copy of the trained folder that a test may damage."""
    return shutil.copytree(saved, tmp_path / "weights")


def test_a_loaded_model_has_the_weights_and_the_codebook(saved):
    loaded, expected = TrainedModel.load(saved), tiny_model()
    expected.set_codebook(loaded.codec.codebook)
    assert loaded.tasks == tuple(Task) and not loaded.model.training
    for task in Task:
        packed = packed_sequence(task, texts=[[5, 6, 7, 8]])
        assert loaded.model(packed).item() == pytest.approx(expected(packed).item(), rel=1e-5)
    held = [buffer for name, buffer in loaded.model.named_buffers() if name.endswith("codebook_KE")]
    assert len(held) == 2 and all(torch.equal(buffer, loaded.codec.codebook) for buffer in held)


def test_there_is_one_drawing_per_prompt_and_it_depends_on_the_seed(saved):
    model = TrainedModel.load(saved)
    config = DrawConfig(seed=3, batch_prompts=2, guidance=1.0)
    images = model.draw(PROMPTS, config)
    assert (images.shape, images.dtype) == ((3, 16, 16, 3), np.uint8)
    assert np.array_equal(images, model.draw(PROMPTS, config))
    assert not np.array_equal(images, model.draw(PROMPTS, config.model_copy(update={"seed": 4})))
    in_one_batch = config.model_copy(update={"batch_prompts": 64})
    assert np.array_equal(images[[2, 0]], model.draw([PROMPTS[2], PROMPTS[0]], in_one_batch, seeds=[5, 3]))


def test_drawings_are_sampled_as_the_folder_says_unless_told_otherwise(folder):
    greedy = DrawConfig(temperature=0.0)
    loaded = TrainedModel.load(folder)
    assert loaded.draw_config == DrawConfig()
    save_whole(folder, *load_weights(folder), loaded.tokenizer, loaded.codec, greedy)
    again = TrainedModel.load(folder)
    np.testing.assert_array_equal(again.draw(PROMPTS), loaded.draw(PROMPTS, greedy))
    np.testing.assert_array_equal(again.draw(PROMPTS, DrawConfig()), loaded.draw(PROMPTS))
    (folder / DRAW_FILE).write_text('{"strength": 2}')
    with pytest.raises(ConfigError, match=rf"{DRAW_FILE}: 1 value\(s\) refused\s+strength"):
        TrainedModel.load(folder)


def test_there_is_one_answer_per_question_for_any_batch_size(saved):
    model = TrainedModel.load(saved)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    questions = ["what is this?", "how many dogs?", "where?"]
    answers = model.answer(images, questions, AnswerConfig(max_tokens=4))
    assert answers == model.answer(images, questions, AnswerConfig(max_tokens=4, batch_questions=2))
    assert len(answers) == 3 and all(isinstance(answer, str) for answer in answers)


def test_a_model_with_vila_us_tokenizer_draws_answers_and_reads_images(tmp_path):
    codec, tokenizer = golden_codec(), tiny_tokenizer()
    sizes = {"codebook_size": 128, "code_width": 32, "codes_per_position": 4}
    config = WeightsConfig(model=tiny_config(), dimensions=DIMENSIONS.model_copy(update=sizes))
    model = UniFork(config.model, config.dimensions)
    initialize(model, 0)
    save_whole(tmp_path, dict(model.named_parameters()), config, tokenizer, codec, DrawConfig())
    loaded = TrainedModel.load(tmp_path)
    assert loaded.codec.digest == codec.digest
    assert loaded.draw(PROMPTS[:2]).shape == (2, 16, 16, 3)
    images = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    assert len(loaded.answer(images, PROMPTS[:1], AnswerConfig(max_tokens=2))) == 1
    stream = BytesIO()
    Image.fromarray(images[0]).save(stream, "PNG")
    with_image = sample_of(Task.GENERATION, image=stream.getvalue(), image_format="png")
    with_codes = sample_of(Task.GENERATION, codes=codec.encode(images)[0].astype(np.uint16))
    assert loaded.loss(with_image) == loaded.loss(with_codes)


@pytest.mark.parametrize(
    ("missing", "error"),
    [(WEIGHTS_NAME, CheckpointError), (TEXT_FOLDER, TokenizerError), (VISION_FOLDER, TokenizerError)],
)
def test_missing_files_are_named(folder, missing, error):
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
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


def test_a_model_with_one_branch_refuses_the_other_task(tmp_path):
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


@pytest.mark.parametrize("name", ["prompt", "question"])
def test_texts_that_are_too_long_are_refused(saved, name):
    model, texts = TrainedModel.load(saved), ["a" * (MAX_TEXT_CHARS + 1)]
    with pytest.raises(ConfigError, match=f"a {name} has 10,001 characters, at most 10,000"):
        if name == "prompt":
            model.draw(texts)
        else:
            model.answer(np.zeros((1, 16, 16, 3), np.uint8), texts)


def test_text_with_a_lone_surrogate_is_refused(saved):
    with pytest.raises(ConfigError, match="a prompt is not valid Unicode"):
        TrainedModel.load(saved).draw(["a d\udcffog"])


def sample_of(task, **fields):
    words = {"prompt": "a dog"} if task is Task.GENERATION else {"turns": (("what is this?", "a dog"),)}
    return Sample(id="one", task=task, source="s", licence="CC0-1.0", **words, **fields)


def codes_of(seed, depth=DIMENSIONS.codes_per_position):
    return np.random.default_rng(seed).integers(0, DIMENSIONS.codebook_size, (2, 2, depth), dtype=np.uint16)


@pytest.mark.parametrize("task", Task)
def test_loss_is_the_training_loss_of_one_sample(saved, task):
    model, sample = TrainedModel.load(saved), sample_of(task, codes=codes_of(1))
    found = model.loss(sample)
    encoded = encode_sample(sample, model.tokenizer, codec=CODEC_SIZES)
    packed = pack_sequence([encoded], seq_len=len(encoded.token_ids_L) + 5, padding_id=model.tokenizer.padding_id)
    assert found.num_targets == packed.num_targets > 0
    assert found.nats == pytest.approx(model.model(packed).item(), rel=1e-5)


def test_loss_of_an_image_is_that_of_its_codes(saved):
    model = TrainedModel.load(saved)
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(image[0]).save(stream, "PNG")
    codes = model.codec.encode(image)[0].astype(np.uint16)
    from_image = model.loss(sample_of(Task.GENERATION, image=stream.getvalue(), image_format="png"))
    assert from_image == model.loss(sample_of(Task.GENERATION, codes=codes))


@pytest.mark.parametrize("codes", [codes_of(0, depth=5), np.full((2, 2, 3), DIMENSIONS.codebook_size, np.uint16)])
def test_loss_refuses_codes_of_another_codec(saved, codes):
    with pytest.raises(SampleError, match="one: its codes"):
        TrainedModel.load(saved).loss(sample_of(Task.GENERATION, codes=codes))


@pytest.mark.parametrize("tied", [True, False])
def test_in_bf16_weights_are_rounded_and_the_codebook_is_not(tmp_path, tied):
    save_trained(tmp_path, tiny_config(tie_word_embeddings=tied))
    loaded = TrainedModel.load(tmp_path, dtype=torch.bfloat16)
    expected = dict(tiny_model(tiny_config(tie_word_embeddings=tied)).bfloat16().named_parameters())
    for name, weight in loaded.model.named_parameters():  # but those of layers that are fused on some CPUs
        assert torch.equal(weight, expected[name]), name
    head = loaded.model.branches[Task.UNDERSTANDING].head.weight
    assert (head is loaded.model.trunk.token_embedding.weight) == tied
    assert torch.equal(loaded.model.trunk.code_embedding.codebook_KE, loaded.codec.codebook)
    assert loaded.draw(PROMPTS[:1], DrawConfig()).shape == (1, 16, 16, 3)
    assert isinstance(loaded.loss(sample_of(Task.GENERATION, codes=codes_of(0))).nats, float)


@pytest.mark.gpu
@torch.inference_mode()
def test_cuda_draws_answers_and_loses_as_the_cpu_does(saved):
    cpu, cuda = TrainedModel.load(saved), TrainedModel.load(saved, device="cuda")
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert np.array_equal(cpu.codec.encode(images), cuda.codec.encode(images))
    assert np.abs(cpu.draw(PROMPTS).astype(int) - cuda.draw(PROMPTS)).max() <= 1
    assert cpu.answer(images, PROMPTS[:2]) == cuda.answer(images, PROMPTS[:2])
    sample = sample_of(Task.GENERATION, codes=codes_of(0))
    assert cpu.loss(sample).nats == pytest.approx(cuda.loss(sample).nats, rel=1e-4)
