"""Shards of images are encoded into shards of codes."""

import io
import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.encode import EncodeConfig, encode_shards
from tests.golden_files import golden_codec
from ufork.data.shards.manifest import Manifest
from ufork.data.shards.sample import Sample
from ufork.data.shards.source import ShardSource
from ufork.data.shards.writer import ShardWriter, finish_source, start_source
from ufork.errors import ConfigError, ShardError, StorageError
from ufork.vision.autoencoder import RQVAE
from ufork.vision.codec import ImageCodec
from ufork.vision.config import VisionConfig
from ufork.vocabulary import Task

CONFIG = VisionConfig(image_px=16, patch_px=4, codes_per_position=2, codebook_size=20, code_width=8, hidden_width=16)


def make_codec(seed: int = 0) -> ImageCodec:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ImageCodec(RQVAE(CONFIG))


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def make_sample(task: Task, number: int, image: bytes) -> Sample:
    prompt, turns = (f"picture {number}", ()) if task == Task.GENERATION else ("", (("what?", str(number)),))
    return Sample(
        id=f"test-{task}-{number}",
        task=task,
        source="test",
        licence="CC0-1.0",
        image=image,
        image_format="png",
        prompt=prompt,
        turns=turns,
        truth={"number": number},
    )


def write_source(folder: Path, images: dict[Task, list[bytes]], recipe: str = "r") -> None:
    start_source(folder)
    entries = []
    for task, files in images.items():
        with ShardWriter(folder, source="test", split="train", task=task, shard_samples=4) as writer:
            for number, data in enumerate(files):
                writer.write(make_sample(task, number, data))
        entries += writer.entries
    finish(folder, entries, recipe)


def finish(folder: Path, entries: list, recipe: str = "r") -> None:
    finish_source(
        folder,
        source="test",
        split="train",
        licence="CC0-1.0",
        attribution="A. Painter",
        recipe=recipe,
        entries=entries,
        skipped={"too dull": 2},
        details={"kinds": ["dog"]},
    )


@pytest.fixture
def source(tmp_path) -> Path:
    files = [png(picture(number)) for number in range(6)]
    write_source(tmp_path / "images", {Task.UNDERSTANDING: files, Task.GENERATION: files[:5]})
    return tmp_path / "images"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_are_encoded_with_either_kind_of_tokenizer(tmp_path, source, caplog):
    codec = golden_codec()
    with caplog.at_level(logging.INFO):
        manifest = encode_shards(codec, source, tmp_path / "codes", EncodeConfig(device="cpu"))
    assert manifest.details["codec"]["digest"] == codec.digest and manifest.details["codec"]["grid"] == [4, 4]
    sample = ShardSource(tmp_path / "codes", Task.GENERATION)[3]
    np.testing.assert_array_equal(sample.codes, codec.encode(picture(3)[None])[0])
    assert re.search(r"11 images in [\d.]+ s, [\d.]+ images/s on cpu", caplog.text)


def test_a_device_that_torch_cannot_use_is_named(tmp_path, source):
    with pytest.raises(ConfigError, match="device cuda"):
        encode_shards(make_codec(), source, tmp_path / "codes", EncodeConfig(device="cuda"))


@pytest.mark.parametrize("task, count", [(Task.UNDERSTANDING, 6), (Task.GENERATION, 5)])
def test_codes_replace_images_and_all_else_is_kept(tmp_path, source, task, count):
    codec = make_codec()
    encode_shards(codec, source, tmp_path / "codes")
    before, after = ShardSource(source, task), ShardSource(tmp_path / "codes", task)
    assert len(after) == count and after.name == before.name
    for number in range(count):
        sample = after[number]
        np.testing.assert_array_equal(sample.codes, codec.encode(picture(number)[None])[0])
        assert sample.image is None and sample.image_format is None
        for name in ("id", "task", "source", "licence", "prompt", "turns", "truth"):
            assert getattr(sample, name) == getattr(before[number], name)


def test_manifest_has_the_codec_and_the_details_of_the_source(tmp_path, source):
    codec = make_codec()
    manifest = encode_shards(codec, source, tmp_path / "codes")
    assert manifest == Manifest.load(tmp_path / "codes")
    assert manifest.details["kinds"] == ["dog"] and manifest.details["codec"]["digest"] == codec.digest
    assert manifest.skipped == {"too dull": 2} and manifest.attribution == "A. Painter"
    manifest.check(tmp_path / "codes", deep=True)


def test_shards_encoded_with_the_same_codec_are_kept(tmp_path, source, monkeypatch):
    encode_shards(make_codec(), source, tmp_path / "codes")
    before = contents(tmp_path / "codes")
    monkeypatch.setattr(ImageCodec, "encode", None)  # a second encoding would fail
    encode_shards(make_codec(), source, tmp_path / "codes")
    assert contents(tmp_path / "codes") == before


def test_another_codec_or_other_images_are_encoded_again(tmp_path, source):
    first = encode_shards(make_codec(), source, tmp_path / "codes")
    second = encode_shards(make_codec(1), source, tmp_path / "codes")
    write_source(source, {Task.GENERATION: [png(picture(9))]}, recipe="other")
    third = encode_shards(make_codec(1), source, tmp_path / "codes")
    assert len({first.recipe, second.recipe, third.recipe}) == 3
    assert third.num_samples(Task.GENERATION) == 1 and third.num_samples(Task.UNDERSTANDING) == 0


def test_undecodable_images_are_skipped_and_counted_by_reason(tmp_path):
    files = [png(picture(0)), b"no image", png(picture(2)), png(picture(3))[:60]]
    write_source(tmp_path / "images", {Task.GENERATION: files})
    manifest = encode_shards(make_codec(), tmp_path / "images", tmp_path / "codes")
    assert manifest.skipped == {
        "image cannot be decoded": 1,
        "image is none of JPEG, PNG, WEBP": 1,
        "too dull": 2,
    }
    samples = ShardSource(tmp_path / "codes", Task.GENERATION)
    assert [samples[number].id for number in range(len(samples))] == ["test-generation-0", "test-generation-2"]
    write_source(tmp_path / "bad", {Task.GENERATION: files[1:2] * 3})
    with pytest.raises(ShardError, match=r"all 3 were skipped:\n  3  image is none of JPEG"):
        encode_shards(make_codec(), tmp_path / "bad", tmp_path / "none")
    assert not (tmp_path / "none/manifest.json").exists()


def test_a_truncated_shard_is_named_and_nothing_counts_as_finished(tmp_path, source):
    shard = next(source.glob("understanding-*.tar"))
    shard.write_bytes(shard.read_bytes()[:-2048])
    with pytest.raises(ShardError, match=shard.name):
        encode_shards(make_codec(), source, tmp_path / "codes")
    with pytest.raises(ShardError):
        Manifest.load(tmp_path / "codes")


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(ShardError, match="nowhere"):
        encode_shards(make_codec(), tmp_path / "nowhere", tmp_path / "codes")


def test_codes_are_not_encoded_again(tmp_path, source):
    encode_shards(make_codec(), source, tmp_path / "codes")
    with pytest.raises(ShardError, match="already holds codes"):
        encode_shards(make_codec(), tmp_path / "codes", tmp_path / "twice")


def test_an_unwritable_target_is_a_storage_error(tmp_path, source):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        encode_shards(make_codec(), source, tmp_path / "file" / "codes")


def test_processes_do_not_change_the_bytes_and_images_may_be_kept(tmp_path, source):
    codec = make_codec()
    for name, num_workers in (("one", 1), ("two", 2)):
        encode_shards(codec, source, tmp_path / name, EncodeConfig(num_workers=num_workers, keep_images=True))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    for task in Task:
        before, after = ShardSource(source, task), ShardSource(tmp_path / "one", task)
        assert [after[n].image for n in range(len(after))] == [before[n].image for n in range(len(before))]
        np.testing.assert_array_equal(after[3].codes, codec.encode(picture(3)[None])[0])


def test_keeping_images_is_part_of_the_recipe(tmp_path, source):
    first = encode_shards(make_codec(), source, tmp_path / "codes", EncodeConfig(keep_images=True))
    second = encode_shards(make_codec(), source, tmp_path / "codes", EncodeConfig(num_workers=2))
    assert first.recipe != second.recipe
    assert ShardSource(tmp_path / "codes", Task.GENERATION)[0].image is None


def test_shards_encoded_before_a_kill_are_kept(tmp_path, source, monkeypatch):
    codec, encode = make_codec(), ImageCodec.encode
    encode_shards(codec, source, tmp_path / "whole")
    calls = iter([None, KeyboardInterrupt])

    def interrupted(self, images):
        if kind := next(calls, None):
            raise kind
        return encode(self, images)

    monkeypatch.setattr(ImageCodec, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_shards(codec, source, tmp_path / "codes")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "codes").glob("*.tar")}
    assert len(times) == 1
    encode_shards(codec, source, tmp_path / "codes")
    assert contents(tmp_path / "codes") == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_samples_without_an_image_are_copied(tmp_path, source):
    start_source(tmp_path / "mixed")
    with ShardWriter(
        tmp_path / "mixed", source="test", split="train", task=Task.UNDERSTANDING, shard_samples=4
    ) as writer:
        writer.write(replace(make_sample(Task.UNDERSTANDING, 0, b""), image=None, image_format=None))
        writer.write(make_sample(Task.UNDERSTANDING, 1, png(picture(1))))
    finish(tmp_path / "mixed", writer.entries)
    encode_shards(make_codec(), tmp_path / "mixed", tmp_path / "codes")
    samples = ShardSource(tmp_path / "codes", Task.UNDERSTANDING)
    assert samples[0].is_text_only and samples[0].turns and samples[1].codes is not None
