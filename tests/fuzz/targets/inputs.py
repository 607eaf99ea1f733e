"""Collections that `ufork shard` reads."""

import io
import json
import tarfile
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
from PIL import Image
from pyarrow import parquet

from data_prep.inputs import caption_table, conversations, foreign_tars, hugging_face, image_folder
from data_prep.inputs.config import open_input
from data_prep.sharding.config import ShardConfig
from data_prep.sharding.run import shard
from tests.fuzz.mutations import Mutation, json_lines, json_text, tar
from tests.fuzz.targets.target import Target
from ufork.vocabulary import Task

READERS = (caption_table, conversations, foreign_tars, hugging_face, image_folder)
"""Imported here, once, and not in each process that is forked."""


@cache
def picture(form: str) -> bytes:
    """Returns a small image file; with an EXIF orientation where the format has one."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, form, exif=exif)
    return file.getvalue()


TALK = {
    "id": "a",
    "image": "a.png",
    "conversations": [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a dog"}],
}


def write_collection(kind: str, folder: Path) -> None:
    """Writes a small collection of three entries."""
    images = folder / "images"
    (images / "dogs").mkdir(parents=True)
    for name, form in (("a.png", "PNG"), ("b.jpg", "JPEG"), ("c.webp", "WEBP")):
        (images / "dogs" / name).write_bytes(picture(form))
        (images / name).write_bytes(picture(form))
    rows = [{"image": name, "caption": f"a {name}, \u00e9"} for name in ("a.png", "b.jpg", "c.webp")]
    talks = [TALK, {**TALK, "id": "b", "image": "b.jpg"}, {"id": "c", "conversations": TALK["conversations"][:0]}]
    match kind:
        case "tar":
            with tarfile.open(folder / "in.tar", "w", format=tarfile.USTAR_FORMAT) as file:
                for number, form in enumerate(("PNG", "JPEG", "WEBP")):
                    members = {"png" if form == "PNG" else form.lower(): picture(form), "txt": b"a dog"}
                    members["json"] = json.dumps({"caption": "a cat", "license": "CC0"}).encode()
                    for extension, contents in members.items():
                        info = tarfile.TarInfo(f"{number:05d}.{extension}")
                        info.size = len(contents)
                        file.addfile(info, io.BytesIO(contents))
        case "parquet":
            files = [{"bytes": (images / row["image"]).read_bytes(), "path": row["image"]} for row in rows]
            columns = {"image": files, "caption": [row["caption"] for row in rows]}
            parquet.write_table(arrow.table(columns), folder / "in.parquet", row_group_size=2)
        case "csv":
            lines = [f'{row["image"]},"{row["caption"]}"' for row in rows]
            (folder / "in.csv").write_text("\n".join(["image,caption", *lines]) + "\n")
        case "caption lines":
            (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        case "conversations":
            (folder / "in.json").write_text(json.dumps(talks))
        case "conversation lines":
            (folder / "in.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
        case "arrow":
            from datasets import Dataset, Features, Value  # seconds to import, and no other kind needs it
            from datasets import Image as ImageColumn

            columns = {"image": [{"bytes": picture("PNG"), "path": None}] * 3, "caption": ["one", "two", "three"]}
            features = Features({"image": ImageColumn(), "caption": Value("string")})
            Dataset.from_dict(columns, features=features).save_to_disk(folder / "in")


COLLECTIONS: dict[str, tuple[dict[str, Mutation | None], dict[str, Any]]] = {
    "tar": ({"in.tar": tar}, {"kind": "tars", "path": "in.tar"}),
    "parquet": ({"in.parquet": None}, {"kind": "captions", "path": "in.parquet"}),
    "csv": ({"in.csv": None}, {"kind": "captions", "path": "in.csv", "images": "images"}),
    "caption lines": ({"in.jsonl": json_lines}, {"kind": "captions", "path": "in.jsonl", "images": "images"}),
    "conversations": ({"in.json": json_text}, {"kind": "conversations", "path": "in.json", "images": "images"}),
    "conversation lines": (
        {"in.jsonl": json_lines},
        {"kind": "conversations", "path": "in.jsonl", "images": "images"},
    ),
    "arrow": (
        {"in/data-00000-of-00001.arrow": None, "in/state.json": json_text, "in/dataset_info.json": json_text},
        {"kind": "huggingface", "path": "in", "caption_column": "caption"},
    ),
    "image folder": ({"images/dogs/a.png": None, "images/dogs/b.jpg": None}, {"kind": "images", "path": "images"}),
}
"""By kind: the files that are mutated, and the configuration of the input."""


def read_collection(config: Mapping[str, Any], folder: Path) -> None:
    """Makes shards, as `ufork shard` does; every entry of the input is kept or counted as skipped."""
    paths = {key: str(folder / config[key]) for key in ("path", "images") if key in config}
    values = {"source": "s", "licence": "CC0", "num_workers": 1, "input": {**config, **paths}}
    shard_config = ShardConfig.from_mapping(values, origin="fuzz")
    num_entries = sum(1 for _ in open_input(shard_config.input).records())
    manifest = shard(shard_config, folder / "out", partial(open_input, shard_config.input))
    num_kept = max(manifest.num_samples(task) for task in Task)
    assert num_kept + sum(manifest.skipped.values()) >= num_entries, (num_entries, num_kept, manifest.skipped)


INPUTS: dict[str, Target] = {
    kind: Target(write=partial(write_collection, kind), files=files, read=partial(read_collection, config))
    for kind, (files, config) in COLLECTIONS.items()
}
