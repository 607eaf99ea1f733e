"""Every entry of a collection is kept, or skipped and counted by its reason, in every reader of `ufork shard`."""

import io
import json
import re
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.inputs.config import open_input
from data_prep.report.drop_report import load_report
from data_prep.sharding.config import ShardConfig
from data_prep.sharding.run import shard
from tests.toy_input import tiny_png
from ufork.errors import InputError

GOOD = "good"
"""The sort of entries that are kept; the others of each collection below cannot be used."""


def images(folder: Path, sorts: list[str]) -> dict[str, object]:
    for number, sort in enumerate(sorts):
        path = folder / {"in no class": "", GOOD: "cat", "damaged": "cat"}.get(sort, "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if sort == "dangling":
            path.symlink_to("nowhere.png")
        elif sort == "loop":
            path.with_suffix("").symlink_to(folder)
        else:
            path = path.with_suffix(".md") if sort == "text" else path
            path.write_bytes(b"nonsense" if sort == "damaged" else tiny_png())
    return {"kind": "images", "path": folder}


def conversations(folder: Path, sorts: list[str]) -> dict[str, object]:
    (folder / "1.png").write_bytes(tiny_png())
    lines = []
    for number, sort in enumerate(sorts):
        turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "" if sort == "empty" else "A."}]
        entry = {"id": number, "image": f"{'' if sort == 'no image' else 1}.png", "conversations": turns}
        lines.append("{nonsense" if sort == "damaged" else json.dumps(entry))
    (folder / "talk.jsonl").write_text("\n".join(lines))
    return {"kind": "conversations", "path": folder / "talk.jsonl", "images": folder}


def delimited(folder: Path, sorts: list[str]) -> dict[str, object]:
    (folder / "1.png").write_bytes(tiny_png())
    rows = {
        GOOD: b"1.png,a cat",
        "empty": b"1.png,",
        "no image": b"2.png,a cat",
        "latin-1": b"1.png,Z\xfcrich",
        "ragged": b"1.png,a,cat",
        "NUL": b"1.png,a\0b",
        "huge": b"1.png," + b"x" * 200_000,
    }
    (folder / "t.csv").write_bytes(b"\n".join([b"image,caption", *(rows[sort] for sort in sorts)]))
    return {"kind": "captions", "path": folder / "t.csv", "images": folder}


def parquet(folder: Path, sorts: list[str]) -> dict[str, object]:
    pictures = {"damaged": b"nonsense", "no image": None}
    columns = {
        "image": pa.array([pictures.get(sort, tiny_png()) for sort in sorts], pa.binary()),
        "caption": pa.array([" " if sort == "empty" else "a cat" for sort in sorts], pa.string()),
    }
    pq.write_table(pa.table(columns), folder / "t.parquet", row_group_size=2)
    return {"kind": "captions", "path": folder / "t.parquet"}


def tars(folder: Path, sorts: list[str]) -> dict[str, object]:
    members = {
        GOOD: {"png": tiny_png(), "txt": b"a cat"},
        "no text": {"png": tiny_png()},
        "no image": {"txt": b"a cat"},
        "damaged": {"png": b"nonsense", "txt": b"a cat"},
        "other": {"bin": b"", "npy": b""},
        "dotted": {"1.png": tiny_png()},
    }
    with tarfile.open(folder / "t.tar", "w") as tar:
        for number, sort in enumerate(sorts):
            if sort == "link":
                info = tarfile.TarInfo(f"{number:04d}.png")
                info.type, info.linkname = tarfile.LNKTYPE, "0000.png"
                tar.addfile(info)
            for extension, contents in members.get(sort, {"png": b""} if sort == "hidden" else {}).items():
                info = tarfile.TarInfo(f"{'.' if sort == 'hidden' else ''}{number:04d}.{extension}")
                info.size = len(contents)
                tar.addfile(info, io.BytesIO(contents))
    return {"kind": "tars", "path": folder / "t.tar"}


def hugging_face(folder: Path, sorts: list[str]) -> dict[str, object]:
    config = parquet(folder, sorts)
    features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
    rows = pq.read_table(config["path"]).to_pydict()
    pictures = [{"bytes": picture, "path": None} if picture else None for picture in rows["image"]]
    datasets.Dataset.from_dict({**rows, "image": pictures}, features).save_to_disk(folder / "saved")
    return {"kind": "huggingface", "path": folder / "saved", "caption_column": "caption"}


COLLECTIONS = [
    (images, (GOOD, "in no class", "text", "damaged", "dangling", "loop")),
    (conversations, (GOOD, "empty", "no image", "damaged")),
    (delimited, (GOOD, "empty", "no image", "latin-1", "ragged", "NUL", "huge")),
    (parquet, (GOOD, "empty", "no image", "damaged")),
    (tars, (GOOD, "no text", "no image", "damaged", "other", "dotted", "hidden", "link")),
    (hugging_face, (GOOD, "empty", "no image", "damaged")),
]


@pytest.mark.parametrize(("write", "sorts"), COLLECTIONS, ids=[write.__name__ for write, _ in COLLECTIONS])
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_entry_is_kept_or_skipped_by_a_reason(tmp_path_factory, monkeypatch, write: Callable, sorts, data):
    monkeypatch.setattr("data_prep.sharding.merge.report_on", lambda target: None)
    folder = tmp_path_factory.mktemp("collection")
    (folder / "in").mkdir()
    drawn = data.draw(st.lists(st.sampled_from(sorts), min_size=1, max_size=6))
    values = {"input": write(folder / "in", drawn), "source": "x", "num_workers": 1, "shard_samples": 4}
    config = ShardConfig.from_mapping(json.loads(json.dumps(values, default=str)), origin="test")
    if GOOD not in drawn:
        with pytest.raises(InputError, match="no record could be kept") as caught:
            shard(config, folder / "out", partial(open_input, config.input))
        counts = re.findall(r"^ +(\d+) +[\d.]+%  \w", str(caught.value), re.MULTILINE)
        assert sum(map(int, counts)) == len(drawn), caught.value
    else:
        shard(config, folder / "out", partial(open_input, config.input))
        selection, _ = load_report(folder / "out")
        assert (selection.kept, selection.num_records) == (drawn.count(GOOD), len(drawn)), selection
