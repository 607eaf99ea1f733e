"""Duplicates are found among all records before any shard is written, by any division of the work."""

import io
from functools import partial

import numpy as np
import pytest
from PIL import Image

from data_prep.inputs.config import open_input
from data_prep.report.drop_report import load_report
from data_prep.sharding import fingerprints as fingerprints_module
from data_prep.sharding.config import ShardConfig
from data_prep.sharding.merge import merge_shards
from data_prep.sharding.run import Share, fingerprint_records, make_record_index, shard, write_shards
from ufork.errors import ShardError

EACH = 6
"""Number of different pictures; each also has an exact copy, and a copy of another format and size."""


def picture(number: int, size_px: int = 32) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures") / "thing"
    folder.mkdir()
    for number in range(EACH):
        (folder / f"{number}-a.png").write_bytes(encoded(picture(number), "PNG"))
        (folder / f"{number}-b.png").write_bytes(encoded(picture(number), "PNG"))
        (folder / f"{number}-c.webp").write_bytes(encoded(picture(number, 48), "WEBP"))
    values = {
        "input": {"kind": "images", "path": str(folder.parent)},
        "source": "things",
        "shard_samples": 5,
        "num_workers": 1,
        "duplicates": {"exact": True, "perceptual": True, "max_distance": 2},
    }
    return ShardConfig.from_mapping(values, origin="test")


def opener(config):
    return partial(open_input, config.input)


def kept_and_dropped(folder) -> tuple[int, dict[str, int]]:
    selection, _ = load_report(folder)
    return selection.kept, dict(selection.dropped)


def test_one_record_per_picture_is_kept(config, tmp_path):
    shard(config, tmp_path, opener(config))
    assert kept_and_dropped(tmp_path) == (EACH, {"exact duplicate": EACH, "near duplicate": EACH})


def test_a_dropped_record_has_no_duplicates(config, tmp_path):
    config = config.model_copy(update={"filters": config.filters.model_copy(update={"min_side_px": 40})})
    shard(config, tmp_path, opener(config))
    assert kept_and_dropped(tmp_path) == (EACH, {"image below 40 px": 2 * EACH})


def test_array_tasks_fingerprint_and_then_write(config, tmp_path, monkeypatch):
    shard(config, tmp_path / "whole", opener(config))
    monkeypatch.setattr(fingerprints_module, "CHUNK_RECORDS", 4)
    target = tmp_path / "array"
    make_record_index(config, target, opener(config))
    for task in (1, 0):
        with pytest.raises(
            ShardError,
            match="chunk . has no fingerprints; run all array tasks with --step fingerprints first",
        ):
            write_shards(config, target, opener(config), Share(task, 2))
        fingerprint_records(config, target, opener(config), Share(task, 2))
    for task in (0, 1):
        write_shards(config, target, opener(config), Share(task, 2))
    merge_shards(config, target)
    shards = sorted(path.name for path in target.glob("*.tar*"))
    assert shards == sorted(path.name for path in (tmp_path / "whole").glob("*.tar*"))
    assert all((target / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in shards)
