"""The frozen codec is stored and loaded, never changes, and is refused when damaged."""

import json

import numpy as np
import pytest
import torch

from ufork.errors import StorageError, TokenizerError
from ufork.vision.autoencoder import RQVAE
from ufork.vision.codec import ImageCodec
from ufork.vision.config import RqvaeConfig, VisionConfig

CONFIG = RqvaeConfig(image_px=16, patch_px=4, codes_per_position=3, codebook_size=20, code_width=8, hidden_width=16)


def make(seed: int = 0) -> ImageCodec:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ImageCodec(RQVAE(CONFIG))


def random_images(count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def test_shapes_and_ranges():
    codec = make()
    codes = codec.encode(random_images())
    assert codes.shape == (5, codec.grid_rows, codec.grid_columns, codec.codes_per_position) == (5, 4, 4, 3)
    assert codes.dtype == np.int64 and codes.min() >= 0 and codes.max() < codec.codebook_size == 20
    drawn = codec.decode(codes)
    assert drawn.shape == (5, 16, 16, 3) and drawn.dtype == np.uint8
    assert codec.codebook.shape == (20, 8) and codec.codebook.dtype == torch.float32


def test_decode_takes_tensors_uint16_and_fewer_depths():
    codec = make()
    codes = codec.encode(random_images())
    expected = codec.decode(codes)
    np.testing.assert_array_equal(codec.decode(torch.from_numpy(codes)), expected)
    np.testing.assert_array_equal(codec.decode(codes.astype(np.uint16)), expected)
    assert codec.decode(codes[..., :1]).shape == expected.shape


def test_several_batches_give_the_same_codes():
    codec, images = make(), random_images(300)
    np.testing.assert_array_equal(codec.encode(images)[290:], codec.encode(images[290:]))
    np.testing.assert_array_equal(codec.decode(codec.encode(images))[290:], codec.decode(codec.encode(images[290:])))


def test_images_of_another_size_have_another_grid():
    codec, images = make(), random_images()
    wide = np.concatenate([images, images[:, :, :4]], axis=2)
    assert codec.encode(wide).shape == (5, 4, 5, 3) and codec.decode(codec.encode(wide)).shape == wide.shape


def test_equal_patches_have_equal_codes_at_any_position():
    codec, images = make(), random_images()
    moved = np.roll(images, (4, 8), axis=(1, 2))
    np.testing.assert_array_equal(codec.encode(moved), np.roll(codec.encode(images), (1, 2), axis=(1, 2)))


def test_a_saved_codec_is_loaded_unchanged(tmp_path):
    codec = make()
    codec.save(tmp_path / "new" / "folder")
    loaded = ImageCodec.load(tmp_path / "new" / "folder")
    assert loaded.digest == codec.digest and loaded.config == codec.config
    np.testing.assert_array_equal(loaded.encode(random_images()), codec.encode(random_images()))


def test_what_serves_to_make_a_tokenizer_is_neither_stored_nor_needed(tmp_path):
    codec = make()
    fitted = RQVAE(VisionConfig(**CONFIG.model_dump(), folder="elsewhere"))
    fitted.load_state_dict(codec.model.state_dict())
    ImageCodec(fitted).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == CONFIG.model_dump() and ImageCodec(fitted).digest == codec.digest
    (tmp_path / "config.json").write_text(json.dumps({**config, "fit": {"of_another_version": 1}}))
    assert ImageCodec.load(tmp_path).digest == codec.digest


def test_digest_differs_between_codecs():
    assert make(0).digest != make(1).digest


def test_a_training_step_around_the_codec_changes_no_value():
    codec = make()
    codec.model.train()  # even by mistake
    before = {name: value.clone() for name, value in codec.model.state_dict().items()}
    projector = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW([*projector.parameters(), *codec.model.parameters()], lr=1.0, weight_decay=1.0)
    codes = torch.from_numpy(codec.encode(random_images()))
    pixels = torch.randn(5, 4, 4, 48)
    reconstruction, quantized = codec.model(pixels)
    features = projector(codec.model.quantizer.embed(codes) + quantized.features)
    (features.square().mean() + reconstruction.mean() + quantized.commitment).backward()
    optimizer.step()
    codec.decode(codes)
    after = codec.model.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def spoil_nothing(folder):
    for file in folder.iterdir():
        file.unlink()


def spoil_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def spoil_header(folder):
    (folder / "model.safetensors").write_bytes(b"not weights at all")


def spoil_json(folder):
    (folder / "config.json").write_text("{")


def spoil_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "codebook_size": 21}))


def spoil_key(folder):
    (folder / "config.json").write_text(json.dumps({"image_pixels": 16}))


def spoil_type(folder):
    (folder / "config.json").write_text("[]")


@pytest.mark.parametrize(
    "spoil, named",
    [
        (spoil_nothing, "config.json"),
        (spoil_weights, "model.safetensors"),
        (spoil_header, "model.safetensors"),
        (spoil_json, "config.json"),
        (spoil_shape, "model.safetensors"),
        (spoil_key, "image_pixels"),
        (spoil_type, "config.json"),
    ],
)
def test_a_bad_folder_is_refused_by_name(tmp_path, spoil, named):
    make().save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(TokenizerError, match=named):
        ImageCodec.load(tmp_path)


def test_an_unwritable_folder_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        make().save(tmp_path / "file" / "folder")
