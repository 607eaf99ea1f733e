"""VILA-U's tokenizer computes what the release computes, at its own size and at another one, and changes no code."""

import json

import numpy as np
import pytest
import torch

from tests.golden_files import golden, golden_codec
from ufork.errors import ConfigError, TokenizerError
from ufork.vision.codec import ImageCodec
from ufork.vision.vila_u.config import VilaUConfig
from ufork.vision.vila_u.tokenizer import VilaU
from ufork.without_initialization import WithoutInitialization

SIZES = pytest.mark.parametrize("size", ["", "_hi"], ids=["16px", "24px-interpolated"])


@pytest.fixture(scope="module")
def codec() -> ImageCodec:
    return golden_codec()


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return golden("tokenizer")


def pixels(images: torch.Tensor) -> torch.Tensor:
    return ((images + 1) * 127.5).clamp(0, 255)


@SIZES
def test_features_and_codes_are_those_of_the_release(codec, expected, size):
    features = codec.model.features(expected["image" + size])
    quantized = codec.model.quantizer(features)
    torch.testing.assert_close(features, expected["pre_quant" + size], rtol=0, atol=1e-5)
    assert torch.equal(quantized.codes, expected["codes" + size])
    assert torch.equal(codec.model.encode(expected["image" + size]), expected["codes" + size])
    torch.testing.assert_close(quantized.features, expected["z_q" + size], rtol=0, atol=1e-5)
    sums = codec.model.quantizer.embed(quantized.codes).flatten(1, 2)
    torch.testing.assert_close(sums, expected["code_emb_sum" + size], rtol=0, atol=1e-5)


@SIZES
def test_decoded_pixels_are_those_of_the_release(codec, expected, size):
    drawn = codec.model.decode(expected["codes" + size])
    torch.testing.assert_close(pixels(drawn), pixels(expected["decoded" + size]), rtol=0, atol=1e-3)
    as_bytes = codec.decode(expected["codes" + size])
    assert as_bytes.dtype == np.uint8 and as_bytes.shape == tuple(drawn.permute(0, 2, 3, 1).shape)
    np.testing.assert_allclose(as_bytes, pixels(drawn).permute(0, 2, 3, 1).numpy(), atol=0.5001)


def test_batches_give_the_codes_of_single_images(codec):
    images = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)
    codes = codec.encode(images)
    assert codes.shape == (11, 4, 4, 4) and codes.max() < codec.codebook_size
    np.testing.assert_array_equal(codes[10:], codec.encode(images[10:]))


def test_half_precision_around_the_tokenizer_changes_no_code(codec, expected):
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.model.encode(expected["image"]), expected["codes"])


@pytest.mark.gpu
@SIZES
def test_a_gpu_chooses_the_same_codes(codec, expected, size):
    on_gpu = codec.on(torch.device("cuda:0"))
    assert torch.equal(on_gpu.model.encode(expected["image" + size].cuda()).cpu(), expected["codes" + size])
    drawn = on_gpu.model.decode(expected["codes" + size].cuda()).cpu()
    torch.testing.assert_close(pixels(drawn), pixels(expected["decoded" + size]), rtol=0, atol=1e-3 * 255)


def test_a_saved_tokenizer_is_loaded_unchanged_by_its_kind(codec, tmp_path):
    codec.save(tmp_path)
    loaded = ImageCodec.load(tmp_path)
    assert isinstance(loaded.model, VilaU) and loaded.config == codec.config and loaded.digest == codec.digest
    assert (loaded.grid_rows, loaded.grid_columns, loaded.codes_per_position) == (4, 4, 4)


def test_the_digest_depends_on_the_size_of_images(codec):
    other = VilaU(codec.config.model_copy(update={"image_px": 24}))
    other.load_state_dict(codec.model.state_dict())
    assert ImageCodec(other).digest != codec.digest and ImageCodec(other).grid_rows == 6


def test_an_unknown_kind_is_named(codec, tmp_path):
    codec.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "kind": "vqgan"}))
    with pytest.raises(TokenizerError, match=r"kind 'vqgan' of image tokenizer; known are rqvae, vila_u"):
        ImageCodec.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"trained_px": 100}, "trained_px=100 is not a multiple of patch_px=16"),
        ({"num_attention_heads": 3}, "code_width=1024 is not a multiple of num_attention_heads=3"),
        ({"decoder": {"channel_factors": [1, 2]}}, "patch_px=16, but a decoder of 2 levels draws 2 x 2"),
        ({"decoder": {"channels": 40}}, "not multiples of 32"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, fault):
    values = {"image_px": 384, "patch_px": 16, "codebook_size": 16384, "code_width": 1024}
    with pytest.raises(ConfigError, match=fault):
        VilaUConfig.from_mapping({**values, **changes}, origin="test")


def test_parameters_at_the_released_size():
    """What is built here and what is not are together what the specification counts."""
    config = VilaUConfig(image_px=256, patch_px=16, codebook_size=16384, code_width=1024)
    with torch.device("meta"), WithoutInitialization():
        model = VilaU(config)

    def count(module: torch.nn.Module) -> int:
        return sum(value.numel() for value in module.state_dict().values())

    layer, width = count(model.encoder.layers[0]), config.code_width
    text_model = 24 * layer + (32_000 + 64) * width + 2 * width + width**2 + width  # layers, embeddings, norm, head
    pooling = width + layer - 2 * width  # a probe, and a layer with one norm
    last_layer_and_norm = layer + 2 * width
    padding_row, scales = width, 2
    unused = text_model + pooling + last_layer_and_norm + padding_row + scales
    assert round(count(model.decoder) / 1e6) == 42
    assert round(text_model / 1e6) == 336
    assert round((count(model) + unused) / 1e6, 1) == 711.6
