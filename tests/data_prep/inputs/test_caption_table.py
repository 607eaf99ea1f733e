"""Caption tables in every format: texts, image locations, and rows that cannot be used."""

import csv
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.inputs.config import CaptionsConfig, open_input
from data_prep.inputs.record import Dropped, Record
from ufork.errors import InputError, SampleError

ROWS = [("1.jpg", "a cat"), ("2.jpg", 'a "big", brown dog'), ("sub/3.jpg", "zwei\nBäume")]


def write_csv(path, rows=ROWS, names=("image", "caption"), **settings):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, **settings).writerows([names, *rows] if names else rows)
    return path


def write_parquet(path, row_group_size=2, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def read(path, **settings):
    reader = open_input(CaptionsConfig(path=path, **settings))
    return reader, list(reader.records())


def reasons(records):
    return [record.reason if isinstance(record, Dropped) else "" for record in records]


def write_table(path):
    """Writes ROWS in the format given by the suffix of `path`."""
    if path.suffix == ".parquet":
        write_parquet(path, image=[image for image, _ in ROWS], caption=[caption for _, caption in ROWS])
    elif path.suffix == ".csv":
        write_csv(path)
    else:
        lines = [json.dumps({"image": image, "caption": caption}) for image, caption in ROWS]
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]")


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl", "t.json"])
def test_every_format_yields_the_same_records(tmp_path, name):
    (tmp_path / "images/sub").mkdir(parents=True)
    for image, _ in ROWS:
        (tmp_path / "images" / image).write_bytes(image.encode())
    write_table(tmp_path / name)
    reader, records = read(tmp_path / name, images=tmp_path / "images")
    assert records == [
        Record(id=f"{name}:{row}", image=(image,), caption=caption) for row, (image, caption) in enumerate(ROWS)
    ]
    assert [reader.image(record) for record in reversed(records)] == [b"sub/3.jpg", b"2.jpg", b"1.jpg"]
    assert list(reader.records()) == records


def test_a_tsv_without_a_header_line(tmp_path):
    (tmp_path / "cc.tsv").write_text('"quoted" sign\t1.jpg\n5" disk\t2.jpg\n')
    _, records = read(tmp_path / "cc.tsv", images=tmp_path, column_names=["caption", "image"])
    assert [record.caption for record in records] == ['"quoted" sign', '5" disk']


@pytest.mark.parametrize("as_struct", [True, False])
def test_images_in_parquet_are_read_by_row_in_any_order(tmp_path, read_in_another_process, as_struct):
    data = [bytes([number]) * (1000 + number) for number in range(5)]
    images = [{"bytes": image, "path": None} for image in data] if as_struct else data
    path = write_parquet(tmp_path / "t.parquet", image=images, caption=[f"number {n}" for n in range(5)])
    reader, records = read(path)
    assert [record.image for record in records] == [("t.parquet", row // 2, row % 2) for row in range(5)]
    assert [reader.image(records[row]) for row in (4, 0, 3, 1, 2)] == [data[row] for row in (4, 0, 3, 1, 2)]
    assert read_in_another_process(CaptionsConfig(path=path)) == str(
        [(record, reader.image(record)) for record in records]
    )


def test_neighbouring_images_in_parquet_read_their_row_group_once(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "t.parquet", row_group_size=3, image=[b"1"] * 6, caption=["a"] * 6)
    reader, records = read(path)
    groups = []
    genuine = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda file, group, **more: groups.append(group) or genuine(file, group, **more),
    )
    assert [reader.image(record) for record in records] == [b"1"] * 6
    assert groups == [0, 1]


def test_a_csv_without_line_ends_takes_bounded_memory(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"image,caption\n" + b"x" * 30_000_000)
    tracemalloc.start()
    try:
        _, records = read(path, images=tmp_path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert set(reasons(records)) == {"row that cannot be read"}
    assert peak_bytes < 10_000_000


def test_an_image_in_parquet_may_be_missing_a_path_or_too_large(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").write_bytes(b"one")
    images = [
        {"bytes": None, "path": "1.jpg"},
        {"bytes": None, "path": "../secret"},
        {"bytes": b"x" * 2_000_000, "path": None},
        {"bytes": None, "path": None},
        None,
    ]
    path = write_parquet(tmp_path / "t.parquet", image=images, caption=["a"] * 5)
    reader, records = read(path, images=tmp_path / "images", max_image_mb=1)
    assert reader.image(records[0]) == b"one"
    for record, reason in zip(records[1:], ("leaves", "max_image_mb", "neither", "neither"), strict=True):
        with pytest.raises(SampleError, match=reason):
            reader.image(record)


def test_several_captions_per_row(tmp_path):
    path = write_parquet(
        tmp_path / "t.parquet",
        image=[b"1", b"2", b"3"],
        caption=[["a", "b"], [], ["c"]],
        key=[7, 7, 7],
        terms=["CC0", "", None],
    )
    settings = {"id_column": "key", "licence_column": "terms"}
    _, first = read(path, **settings)
    assert [(record.id, record.caption, record.licence) for record in (first[0], first[2])] == [
        ("t.parquet:0:7", "a", "CC0"), ("t.parquet:2:7", "c", "")
    ]  # fmt: skip
    assert first[1] == Dropped("t.parquet:1:7", "no caption")
    _, every = read(path, captions="all", **settings)
    assert [record.id for record in every] == [
        "t.parquet:0:7#0", "t.parquet:0:7#1", "t.parquet:1:7", "t.parquet:2:7#0"
    ]  # fmt: skip
    assert every[0].image == every[1].image


def test_an_object_without_a_licence_has_none(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"image": "1.jpg", "caption": "a"}\n{"image": "2.jpg", "caption": "b", "licence": "CC0"}\n')
    _, records = read(path, images=tmp_path, licence_column="licence")
    assert [record.licence for record in records] == ["", "CC0"]


@pytest.mark.parametrize(
    ("image", "caption", "reason"),
    [
        ("1.jpg", "", "empty caption"),
        ("1.jpg", " \n ", "empty caption"),
        ("1.jpg", "x" * 101, "caption longer than input.max_text_chars"),
        ("1.jpg", "a\0b", "caption that is not valid UTF-8"),
        ("", "a", "no image path"),
        ("/etc/passwd", "a", "image path that leaves the collection"),
        ("a/../../b", "a", "image path that leaves the collection"),
        ("http://example.org/1.jpg", "a", "image is a URL"),
    ],
)
def test_rows_that_cannot_be_used_are_dropped(tmp_path, image, caption, reason):
    rows = [("1.jpg", "good"), (image, caption), ("1.jpg", "good")]
    _, records = read(write_csv(tmp_path / "t.csv", rows), images=tmp_path, max_text_chars=100)
    assert reasons(records) == ["", reason, ""]


def test_broken_rows_of_a_csv_are_counted_and_the_rest_is_read(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"image,caption\n1.jpg,\xff\n1.jpg,a,b\n1.jpg\n\n1.jpg," + b"x" * 200_000 + b"\n1.jpg,good\n")
    _, records = read(path, images=tmp_path)
    columns = "row of more or fewer columns than the first line"
    assert reasons(records) == ["caption that is not valid UTF-8", columns, columns, "row that cannot be read", ""]


def test_a_text_in_parquet_that_is_not_utf8_costs_only_its_row(tmp_path):
    broken = pa.array([b"good", b"\xff\xfe", b"good"]).view(pa.string())
    path = write_parquet(tmp_path / "t.parquet", image=[b"1", b"2", b"3"], caption=broken)
    _, records = read(path)
    assert reasons(records) == ["", "caption that is not valid UTF-8", ""]


def test_tables_of_urls_are_refused_with_the_remedy(tmp_path):
    write_csv(tmp_path / "a.csv", [("https://example.org/1.jpg", "a cat")])
    write_parquet(tmp_path / "b.parquet", URL=["https://example.org/1.jpg"], TEXT=["a cat"])
    for path in (tmp_path / "a.csv", tmp_path / "b.parquet"):
        with pytest.raises(InputError, match="img2dataset"):
            read(path, images=tmp_path)


def test_damaged_files_are_counted_and_the_others_read(tmp_path):
    for name in ("a", "b", "c"):
        write_parquet(tmp_path / f"{name}.parquet", image=[b"1"], caption=[name])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nonsense PAR1")
    _, records = read(tmp_path)
    assert [record.id for record in records] == ["a.parquet:0", "b.parquet:0", "c.parquet:0"]
    assert reasons(records) == ["", "file that cannot be read, or not to its end", ""]
    with pytest.raises(InputError, match=r"b\.parquet"):
        read(tmp_path / "b.parquet")


def test_a_row_group_that_is_too_large_is_refused(tmp_path):
    images = [bytes(1_000_000)] * 3
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": images, "caption": ["a"] * 3}), path, use_dictionary=False)
    with pytest.raises(InputError, match="row_group_size"):
        read(path, max_row_group_mb=1)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_missing_columns_and_folders_are_named(tmp_path, name):
    write_table(tmp_path / name)
    with pytest.raises(InputError, match=r"'text'.*'caption'"):
        read(tmp_path / name, images=tmp_path, caption_column="text")
    with pytest.raises(InputError, match=r"set input\.images"):
        read(tmp_path / name)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="is empty"):
        read(tmp_path / "empty.csv")
