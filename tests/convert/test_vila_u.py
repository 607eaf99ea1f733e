"""VILA-U's tokenizer and RQ head are converted from the release's tensors, with their aliases or without."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines import cli
from tests.golden_files import TOKENIZER, golden, golden_codec, write_vila_u
from ufork.convert.vila_u import RQ_HEAD_PREFIX, convert
from ufork.convert.vila_u_config import RqHeadSizes
from ufork.errors import CheckpointError, ConfigError
from ufork.model.rq_head import RqHead
from ufork.vision.codec import ImageCodec

RQ_HEAD = "rqtransformer."
ALIASES = r"rqvaesiglip\.(logit_.*|quantizer\.codebooks\.[1-3]\..*)"


@pytest.fixture
def tower(tmp_path):
    return write_vila_u(tmp_path)


def change_weights(tower, change) -> None:
    weights = load_file(tower / "model.safetensors")
    change(weights)
    save_file(weights, tower / "model.safetensors")


def change_config(tower, **values) -> None:
    path = tower / "config.json"
    config = json.loads(path.read_text())
    config["rqvaesiglip"] |= values
    path.write_text(json.dumps(config))


def test_the_tokenizer_is_that_of_the_release(tower, tmp_path):
    converted = convert(tower, tmp_path / "to")
    codec = ImageCodec.load(tmp_path / "to")
    assert converted.config == codec.config == TOKENIZER
    assert codec.digest == golden_codec().digest
    assert converted.num_parameters == sum(value.numel() for value in codec.model.state_dict().values())


def test_the_verb_writes_the_tokenizer(tower, tmp_path, capsys):
    assert cli.main(["convert", "vila-u", str(tower), "--to", str(tmp_path / "to"), "image_px=24"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'to'}: 0.2M parameters")
    assert ImageCodec.load(tmp_path / "to").grid_rows == 6


def test_the_folder_around_the_tower_may_be_given_and_images_be_larger(tower, tmp_path):
    convert(tower.parent, tmp_path / "to", ["image_px=24"])
    codec, expected = ImageCodec.load(tmp_path / "to"), golden("tokenizer")
    assert (codec.config.image_px, codec.config.trained_px, codec.grid_rows) == (24, 16, 6)
    assert torch.equal(codec.model.encode(expected["image_hi"]), expected["codes_hi"])


def test_aliases_are_not_needed(tower, tmp_path):
    def without_aliases(weights):
        for name in [name for name in weights if re.fullmatch(ALIASES, name)]:
            del weights[name]

    change_weights(tower, without_aliases)
    convert(tower, tmp_path / "to")
    assert ImageCodec.load(tmp_path / "to").digest == golden_codec().digest


def test_any_of_the_equal_codebooks_may_be_the_one_that_is_left(tower, tmp_path):
    def only_the_last(weights):
        for number in range(3):
            del weights[f"rqvaesiglip.quantizer.codebooks.{number}.weight"]

    change_weights(tower, only_the_last)
    convert(tower, tmp_path / "to")
    assert ImageCodec.load(tmp_path / "to").digest == golden_codec().digest


def test_the_rq_head_predicts_as_the_release(tower, tmp_path):
    converted = convert(tower, tmp_path / "to")
    sizes = RqHeadSizes.from_yaml(tmp_path / "to/rq_head/config.json")
    head = RqHead(sizes.rq_head, sizes.dimensions, sizes.body_size).eval()
    weights = load_file(tmp_path / "to/rq_head/model.safetensors")
    head.load_state_dict({name.removeprefix(RQ_HEAD_PREFIX): weight for name, weight in weights.items()})
    assert converted.num_rq_head_parameters == sum(weight.numel() for weight in weights.values())

    expected = golden("rq_head")
    sums = golden_codec().codebook[expected["codes"]].cumsum(dim=-2).flatten(0, 1)
    with torch.no_grad():
        logits = head.out(head.states(expected["hidden"].flatten(0, 1), sums))
    torch.testing.assert_close(logits, expected["logits"].flatten(0, 1), rtol=0, atol=1e-5)


def test_a_tokenizer_without_an_rq_head_is_converted(tower, tmp_path):
    def without_head(weights):
        for name in [name for name in weights if name.startswith(RQ_HEAD)]:
            del weights[name]

    change_weights(tower, without_head)
    assert convert(tower, tmp_path / "to").num_rq_head_parameters == 0
    assert not (tmp_path / "to/rq_head").exists()


def test_half_precision_is_kept_in_the_file(tower, tmp_path):
    change_weights(tower, lambda weights: weights.update({name: w.bfloat16() for name, w in weights.items()}))
    convert(tower, tmp_path / "to")
    assert {w.dtype for w in load_file(tmp_path / "to/model.safetensors").values()} == {torch.bfloat16}
    assert ImageCodec.load(tmp_path / "to").codebook.dtype == torch.float32


def test_tensors_that_do_not_match_are_named_in_groups(tower, tmp_path):
    def damage(weights):
        for layer in (0, 1):
            del weights[f"rqvaesiglip.siglip_model.vision_model.encoder.layers.{layer}.mlp.fc1.weight"]
        weights["rqvaesiglip.prequant.weight"] = torch.zeros(1)
        weights["rqvaesiglip.post_quant_conv.bias"] = torch.zeros(3)

    change_weights(tower, damage)
    with pytest.raises(CheckpointError) as raised:
        convert(tower, tmp_path / "to")
    for line in (
        r"missing: rqvaesiglip\.siglip_model\.vision_model\.encoder\.layers\.\*\.mlp\.fc1\.weight \(2 tensors\)",
        r"unexpected: rqvaesiglip\.prequant\.weight",
        r"mis-shaped: rqvaesiglip\.post_quant_conv\.bias: \[3\], expected \[16\]",
    ):
        assert re.search(line, str(raised.value))
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"shared_codebook": False}, "shared_codebook"),
        ({"decoder_latent_shape": [28, 28]}, "decoder_latent_shape"),
        ({"n_embed": 10**9}, "codebook_size"),
        ({"embed_dim": 64}, "codes of width 64 and an encoder of width 32"),
        ({"pretrained_model": "google/vit"}, "'google/vit' is no folder, and known by name are only siglip-large"),
        ({"pretrained_model": "google/siglip-large-patch16-256"}, "codes of width 32 and an encoder of width 1024"),
    ],
)
def test_configs_of_other_tokenizers_are_refused(tower, tmp_path, values, fault):
    change_config(tower, **values)
    with pytest.raises(CheckpointError, match=re.escape(fault)):
        convert(tower, tmp_path / "to")


@pytest.mark.parametrize("layers", [10**6, 10**18])
def test_an_rq_head_of_sizes_that_none_has_is_refused(tower, tmp_path, layers):
    """Row M13: before anything is built of that size."""
    path = tower / "config.json"
    config = json.loads(path.read_text())
    config["rqtransformer"]["head"]["n_layer"] = layers
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="num_blocks"):
        convert(tower, tmp_path / "to")


def test_a_folder_without_a_tower_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere/config\.json: cannot be read"):
        convert(tmp_path / "nowhere", tmp_path / "to")


@pytest.mark.parametrize(
    ("override", "fault"), [("image_px=17", "not a multiple of"), ("size=24", "nearest known one")]
)
def test_a_wrong_override_is_named(tower, tmp_path, override, fault):
    with pytest.raises(ConfigError, match=fault):
        convert(tower, tmp_path / "to", [override])
