"""An exported model computes what ufork's does, through transformers' Auto classes."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from tests.hugging_face.exported import CODES, IMAGE_PX, TOKENS_PER_IMAGE, own_logits, random_image, save_weights
from tests.tiny import DIMENSIONS, tiny_config, tiny_tokenizer
from ufork.analysis.text_model import external_text_features
from ufork.data.prompts import generation_prompt, question_prompt
from ufork.errors import CheckpointError, ConfigError, StorageError
from ufork.hugging_face.export import export, find_weights
from ufork.infer.model import TrainedModel
from ufork.vision.images import decode_image
from ufork.vision.patches import to_bytes
from ufork.vision.vila_u.config import PixelDecoderConfig, VilaUConfig
from ufork.vision.vila_u.tokenizer import VilaU
from ufork.vocabulary import PADDING, Task

PROMPTS = ["a red <|im_end|> dog", "two apples left of a cat"]
QUESTIONS = ["what is this?", "how many?"]


KINDS = {
    "Y": {},
    "untied": {"separate_first_layers": 2, "tie_word_embeddings": False},
    "qwen3": {"attention_bias": False, "use_qk_norm": True, "head_dim": 12},
}


@pytest.fixture(scope="module", params=KINDS)
def weights(request, tmp_path_factory):
    config = tiny_config(**KINDS[request.param])
    return save_weights(tmp_path_factory.mktemp("trained") / "weights", config)


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "whole"
    export(weights, folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return AutoModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


def asked(processor, questions, images):
    """The questions about the images, in the words of the chat template."""
    contents = [[{"type": "image"}, {"type": "text", "text": question}] for question in questions]
    texts = [processor.apply_chat_template([{"role": "user", "content": content}]) for content in contents]
    return processor(images=[Image.fromarray(image) for image in images], text=texts)


def answered(model, processor, inputs):
    tokens = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]


def assert_equal(logits, expected, rounding=1e-6):
    """Up to `rounding` of the largest one."""
    torch.testing.assert_close(logits, expected, rtol=0, atol=rounding * expected.abs().max().item())


def test_text_logits_are_those_of_ufork(weights, model, processor):
    token_ids = processor.tokenizer.encode(PADDING * TOKENS_PER_IMAGE + question_prompt(QUESTIONS[0]))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([token_ids]), codes=torch.tensor(CODES)[None]).logits
    assert_equal(logits[0], own_logits(weights, Task.UNDERSTANDING, token_ids, image_begin=0))


def test_code_logits_are_those_of_ufork(weights, model, processor):
    prompt = processor.tokenizer.encode("".join(generation_prompt(PROMPTS[1])))
    token_ids = prompt + processor.tokenizer.encode(PADDING * TOKENS_PER_IMAGE)
    with torch.no_grad():
        codes = torch.tensor(CODES)[None]
        logits = model(input_ids=torch.tensor([token_ids]), codes=codes, task=Task.GENERATION).logits
    assert_equal(logits[0], own_logits(weights, Task.GENERATION, token_ids, image_begin=len(prompt)))


def test_answers_of_a_padded_batch_are_those_of_ufork(weights, model, processor):
    images = np.stack([random_image(seed) for seed in range(len(QUESTIONS))])
    inputs = asked(processor, QUESTIONS, images)
    assert not inputs["attention_mask"].all(), "the questions differ in length"
    assert answered(model, processor, inputs) == TrainedModel.load(weights).answer(images, QUESTIONS)


def test_a_conversation_is_tokenized_with_its_image(processor):
    image = random_image(0)
    content = [{"type": "image", "image": Image.fromarray(image)}, {"type": "text", "text": QUESTIONS[0]}]
    messages = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
    expected = asked(processor, QUESTIONS[:1], [image])
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {}, {"guidance": 1.0, "batch_prompts": 1}], ids=str)
def test_drawings_are_those_of_ufork(weights, model, processor, sampling):
    own = TrainedModel.load(weights)
    expected = own.draw(PROMPTS, own.draw_config.model_copy(update=sampling), seeds=[7, 3])
    assert np.array_equal(model.draw(PROMPTS, processor, seeds=[7, 3], **sampling).numpy(), expected)


def test_drawings_follow_the_weights_when_they_change(folder, processor):
    model = AutoModel.from_pretrained(folder)
    greedy = {"temperature": 0.0}
    model.draw(PROMPTS, processor, **greedy)
    out = model.model.branches[Task.GENERATION].head.out
    with torch.no_grad():
        out.weight.zero_()
        out.bias.copy_(torch.arange(len(out.bias)) == 5)
    expected = model.decode_images(torch.full((2, *CODES.shape), 5))
    assert torch.equal(model.draw(PROMPTS, processor, **greedy), expected)


def test_pixels_are_those_that_ufork_decodes(processor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = tmp_path / "wide.png"
    Image.fromarray(random_image(0)[:9]).save(path, exif=exif)
    expected = decode_image(path.read_bytes(), size_px=IMAGE_PX, purpose=Task.UNDERSTANDING)
    for image in (str(path), Image.open(path)):
        pixels = processor(images=image)["pixel_values"][0]
        assert torch.equal(to_bytes(pixels.permute(1, 2, 0)), torch.from_numpy(expected))


def test_text_and_images_that_do_not_match_are_refused(model, processor):
    with pytest.raises(ValueError, match="0 times .* for 1 images"):
        processor(images=random_image(0), text="what is this?")
    tokens = processor.tokenizer(PADDING, return_tensors="pt")["input_ids"]
    with pytest.raises(ValueError, match="the text has 1 image tokens; 1 images need 6 each"):
        model(input_ids=tokens, codes=torch.tensor(CODES)[None])


def test_saved_by_transformers_it_is_the_same_model(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(again.draw(PROMPTS, processor), model.draw(PROMPTS, processor))


def test_in_bf16_the_image_tokenizer_stays_in_fp32(folder, processor):
    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}
    assert model.image_tokenizer.codebook.dtype == torch.float32
    assert model.draw(PROMPTS, processor).shape == (2, IMAGE_PX, IMAGE_PX, 3)


def test_the_generation_branch_alone_draws_the_same(weights, model, processor, tmp_path):
    export(weights, tmp_path / "drawing", task=Task.GENERATION)
    alone = AutoModel.from_pretrained(tmp_path / "drawing")
    assert alone.num_parameters() < model.num_parameters()
    assert torch.equal(alone.draw(PROMPTS, processor), model.draw(PROMPTS, processor))
    with pytest.raises(ValueError, match="no understanding branch, only generation"):
        alone(input_ids=torch.tensor([[5]]))


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_the_understanding_branch_alone_is_a_plain_qwen_model(tmp_path, kind):
    layers = dict(attention_bias=False, use_qk_norm=True, head_dim=12) if kind == "qwen3" else {}
    weights = save_weights(tmp_path / "weights", tiny_config(separate_first_layers=1, **layers))
    export(weights, tmp_path / "text", task=Task.UNDERSTANDING)
    assert not list((tmp_path / "text").glob("*.py"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    assert type(model).__module__.startswith(f"transformers.models.{kind}.")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "text")
    messages = [{"role": "user", "content": "12 red apples, aren't they?"}]
    token_ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert token_ids == tiny_tokenizer().encode(question_prompt(messages[0]["content"]))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([token_ids])).logits[0]
    # transformers' Qwen models are other code, which rounds at other places
    assert_equal(logits, own_logits(weights, Task.UNDERSTANDING, token_ids), rounding=3e-6)


def test_a_model_with_vila_u_tokenizer_draws_and_reads_the_same(tmp_path):
    sizes = DIMENSIONS.model_dump(exclude={"vocab_size"})
    decoder = PixelDecoderConfig(
        latent_channels=4, channels=32, channel_factors=(1, 1, 1, 1), blocks_per_level=1, attention_levels=(3,)
    )
    layers = dict(trained_px=IMAGE_PX, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    network = VilaU(VilaUConfig(image_px=IMAGE_PX, patch_px=8, decoder=decoder, **layers, **sizes))
    weights = save_weights(tmp_path / "weights", tiny_config(), network)
    export(weights, tmp_path / "whole")
    model, processor = (kind.from_pretrained(tmp_path / "whole") for kind in (AutoModel, AutoProcessor))
    own = TrainedModel.load(weights)
    assert np.array_equal(model.draw(PROMPTS, processor).numpy(), own.draw(PROMPTS))
    images = random_image(0)[None]
    assert answered(model, processor, asked(processor, QUESTIONS[:1], images)) == own.answer(images, QUESTIONS[:1])


def test_an_exported_model_is_no_text_model_to_compare_features_with(folder):
    with pytest.raises(ConfigError, match="gives no features of its layers"):
        external_text_features(folder, ["a dog"], layer=-1, device=torch.device("cpu"))


def test_what_cannot_be_exported_is_refused(weights, folder, tmp_path):
    with pytest.raises(StorageError, match="not empty"):
        export(weights, folder)
    with pytest.raises(CheckpointError, match="no weights of phase 'x'; phases that have them: none"):
        (tmp_path / "run/phases/joint").mkdir(parents=True)
        export(tmp_path / "run", tmp_path / "to", phase="x")
    (tmp_path / "run/phases/joint/weights").mkdir()
    for name in ("", ".", "../phases/joint", str(tmp_path / "run/phases/joint")):
        with pytest.raises(CheckpointError, match=f"no weights of phase '{name}'; phases that have them: joint"):
            find_weights(tmp_path / "run", name)
    expert = save_weights(tmp_path / "expert", tiny_config(tasks=(Task.GENERATION,)))
    with pytest.raises(CheckpointError, match="no understanding branch"):
        export(expert, tmp_path / "to", task=Task.UNDERSTANDING)
    plain = save_weights(tmp_path / "plain", tiny_config(attention_bias=False))
    with pytest.raises(CheckpointError, match="attention_bias=False and use_qk_norm=False"):
        export(plain, tmp_path / "to", task=Task.UNDERSTANDING)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda weight: weight.to(torch.int8), "the type I8"),
        (lambda weight: weight.to(torch.float8_e4m3fn), "the type F8_E4M3"),
        (lambda weight: weight[:-1].clone(), "has shape"),
    ],
)
def test_weights_of_another_type_or_shape_are_not_exported(tmp_path, damage, fault):
    path = save_weights(tmp_path / "weights", tiny_config()) / "model.safetensors"
    save_file({name: damage(weight) for name, weight in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match=f"damaged weights .*{fault}"):
        export(path.parent, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_an_interrupted_export_leaves_no_folder_and_the_next_one_writes_it(weights, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("ufork.hugging_face.export.model_card", interrupt)
        export(weights, tmp_path / "folder")
    assert not list(tmp_path.iterdir())
    export(weights, tmp_path / "folder")
    assert (tmp_path / "folder" / "README.md").exists()
