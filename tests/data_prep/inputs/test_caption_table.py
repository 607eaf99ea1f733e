"""Caption tables in every format: texts, image locations, and rows that cannot be used."""

import base64
import csv
import json
import os
import tracemalloc
import unicodedata

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.inputs.config import CaptionsConfig, open_input
from data_prep.inputs.readers.delimited import UNREADABLE_ROW
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
        array = f"[{','.join(lines)}]"
        path.write_text({"t.jsonl": "\n".join(lines), "wrapped.json": f'{{"data": {array}}}'}.get(path.name, array))


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl", "t.json", "wrapped.json"])
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
    assert set(reasons(records)) == {UNREADABLE_ROW}
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
        ("1.jpg", "a\0b", "caption that contains NUL"),
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
    assert reasons(records) == ["caption that is not valid UTF-8", columns, columns, UNREADABLE_ROW, ""]


@pytest.mark.parametrize("as_binary", [True, False])
def test_a_text_in_parquet_that_is_not_utf8_costs_only_its_row(tmp_path, as_binary):
    broken = pa.array([b"good", b"\xff\xfe", b"good"])
    broken = broken if as_binary else broken.view(pa.string())
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
    for contents, message in (("", "is empty"), ("\n\n", "is empty"), ("text", "no column 'image'"), ("i\0m", "UTF-8")):
        (tmp_path / "empty.csv").write_text(contents)
        with pytest.raises(InputError, match=message):
            read(tmp_path / "empty.csv")


BINARY_TYPES = [
    pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(5), pa.dictionary(pa.int32(), pa.binary()),
    pa.list_(pa.binary()), pa.large_list(pa.binary_view()), pa.list_(pa.binary(), 1),
    pa.struct({"bytes": pa.large_binary()}), pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.null()})),
    pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()),
    pa.list_(pa.string()), pa.struct({"bytes": pa.string()}),
]  # fmt: skip


@pytest.mark.parametrize("kind", BINARY_TYPES, ids=str)
def test_images_of_every_arrow_type_are_read(tmp_path, kind):
    """F5 and F4: binary types, lists of one image, and base64 in every type of text."""
    jpeg, text = b"\xff\xd8\xff\xe0\0", "string" in str(kind)
    one = base64.b64encode(jpeg).decode() if text else jpeg
    in_list, in_struct = str(kind).startswith(("list", "large_list", "fixed_size_list")), "struct" in str(kind)
    image = {"bytes": one} if in_struct else one
    image = [image] if in_list else image
    path = write_parquet(tmp_path / "t.parquet", image=pa.array([image, None, image], kind), caption=["a", "b", "c"])
    reader, records = read(path, images=tmp_path)
    assert [reader.image(records[number]) for number in (0, 2)] == [jpeg, jpeg]
    if isinstance(records[1], Record):
        with pytest.raises(SampleError, match="neither an image nor a path"):
            reader.image(records[1])
    else:
        assert records[1].reason == "no image path"


def test_a_json_object_without_the_keys_costs_only_itself(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"version": 1}\n{"image": "1.jpg", "caption": "a"}\n')
    assert reasons(read(path, images=tmp_path)[1]) == ["no image path", ""]


def test_paths_in_lists_and_objects(tmp_path):
    paths = [
        "1.jpg",
        ["1.jpg"],
        {"path": "1.jpg", "bytes": None},
        [{"path": "1.jpg"}],
        ["1.jpg", "2.jpg"],
        [],
        [0, 255],
        {},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"image": path, "caption": "a"}) for path in paths))
    _, records = read(tmp_path / "t.jsonl", images=tmp_path)
    assert [record.image for record in records[:4]] == [("1.jpg",)] * 4
    found = ["more than one image", "no image path", "image path that is not text", "no image path"]
    assert reasons(records[4:]) == found


def test_lists_of_images_hold_one(tmp_path):
    images = [[b"1"], [b"1", b"2"], []]
    reader, (record,) = read(write_parquet(tmp_path / "t.parquet", image=[{"bytes": [1, 2, 3]}], caption=["a"]))
    with pytest.raises(SampleError, match="neither an image nor a path"):
        reader.image(record)
    reader, records = read(write_parquet(tmp_path / "t.parquet", image=images, caption=["a"] * 3))
    assert reader.image(records[0]) == b"1"
    for record, reason in zip(records[1:], ("more than one image", "no image"), strict=True):
        with pytest.raises(SampleError, match=reason):
            reader.image(record)


def test_damaged_and_large_base64_costs_one_image(tmp_path):
    texts = ["/9j/!!!x", "data:image/png;base64," + "A" * 2_000_000, "data:image/jpeg;base64,/9j/"]
    reader, records = read(write_parquet(tmp_path / "t.parquet", image=texts, caption=["a"] * 3), max_image_mb=1)
    assert reader.image(records[2]) == b"\xff\xd8\xff"
    for record, reason in zip(records, ("base64 is damaged", "input.max_image_mb"), strict=False):
        with pytest.raises(SampleError, match=reason):
            reader.image(record)
    _, records = read(write_csv(tmp_path / "t.csv", [("/9j/4AAQ", "a")]), images=tmp_path)
    assert "parquet only" in records[0].reason


@pytest.mark.parametrize("captions", [["first", "second"], '["first", "second"]', "['first', 'second']"])
def test_a_list_written_as_text_is_a_list(tmp_path, captions):
    """W: a JSON list as text."""
    path = write_parquet(tmp_path / "t.parquet", image=[b"1"], caption=[captions])
    assert [record.caption for record in read(path)[1]] == ["first"]
    assert [record.caption for record in read(path, captions="all")[1]] == ["first", "second"]


@pytest.mark.parametrize(
    "caption", ["[sic]", "[1, 2]", "['a', 1]", "[" * 5000 + "]" * 5000, "['" + "-" * 5000 + "1]", "{x}"]
)
def test_texts_in_brackets_stay_texts(tmp_path, caption):
    path = write_parquet(tmp_path / "t.parquet", image=[b"1"], caption=[caption])
    assert [record.caption for record in read(path)[1]] == [caption]


@pytest.mark.parametrize(
    "caption", [{"en": "a cat", "de": "Katze"}, '{"en": "a cat"}', [{"en": "a cat"}, {"en": "two"}]]
)
@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl"])
def test_a_field_of_objects_is_named_by_the_column(tmp_path, caption, name):
    """F4."""
    path = tmp_path / name
    if name == "t.parquet":
        write_parquet(path, image=["1.jpg"], caption=[caption])
    else:
        path.write_text(json.dumps({"image": "1.jpg", "caption": caption}))
    assert read(path, images=tmp_path, caption_column="caption.en")[1][0].caption == "a cat"
    if isinstance(caption, dict):
        assert "input.caption_column=caption.en" in read(path, images=tmp_path)[1][0].reason


def test_labels_are_numbers_with_names(tmp_path):
    """F4: number captions."""
    path = write_parquet(tmp_path / "t.parquet", image=[b"1"] * 4, caption=[0, 1, 7, -1])
    _, records = read(path)
    assert all("input.label_column" in record.reason for record in records)
    assert [record.class_name for record in read(path, label_column="caption")[1]] == ["0", "1", "7", "-1"]
    (tmp_path / "names.txt").write_text("cat\nbig_dog\n")
    _, records = read(path, label_column="caption", class_names=tmp_path / "names.txt")
    unnamed = "class number without a name in class_names"
    assert [getattr(record, "class_name", "") for record in records] == ["cat", "big dog", "", ""]
    assert reasons(records) == ["", "", unnamed, unnamed]
    path = write_parquet(tmp_path / "t.parquet", image=[b"1"] * 4, label=[0.0, 1.0, None, float("nan")])
    _, records = read(path, label_column="label", class_names=tmp_path / "names.txt")
    assert [getattr(record, "class_name", record) for record in records[:2]] == ["cat", "big dog"]
    assert reasons(records) == ["", "", "no class", "no class"]
    features = datasets.Features(image=datasets.Value("binary"), label=datasets.ClassLabel(names=["cat", "big_dog"]))
    datasets.Dataset.from_dict({"image": [b"1"], "label": [1]}, features).to_parquet(tmp_path / "hf.parquet")
    assert read(tmp_path / "hf.parquet", label_column="label")[1][0].class_name == "big dog"


def test_a_column_that_occurs_twice_is_refused(tmp_path):
    """W: the second one was used, silently."""
    write_csv(tmp_path / "a.csv", [("1.jpg", "one", "two")], ("image", "caption", "caption"))
    pq.write_table(pa.table([["1.jpg"], ["one"], ["two"]], ["image", "caption", "caption"]), tmp_path / "b.parquet")
    for name in ("a.csv", "b.parquet"):
        with pytest.raises(InputError, match="several columns 'caption'"):
            read(tmp_path / name, images=tmp_path)
    write_csv(tmp_path / "c.csv", [("1.jpg", "one", "", "")], ("image", "caption", "", ""))
    (record,) = read(tmp_path / "c.csv", images=tmp_path)[1]
    assert (record.id, record.caption) == ("c.csv:0", "one")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_of_spreadsheets(tmp_path, encoding, end):
    (tmp_path / "t.csv").write_bytes(f'{end}image,caption{end}1.jpg,"eine Tür, zu"{end}2.jpg,b'.encode(encoding))
    _, records = read(tmp_path / "t.csv", images=tmp_path)
    assert [record.caption for record in records] == ["eine Tür, zu", "b"]


@pytest.mark.parametrize("row", ['1.jpg,"open', '1.jpg,"open "quoted" text', '1.jpg,"a\\"b"', '"1.jpg,open'])
@pytest.mark.parametrize("more", [1, 5000])
def test_a_quotation_mark_that_is_not_closed_costs_its_row_only(tmp_path, row, more):
    rows = [f"{number}.jpg,good number {number}" for number in range(more)]
    rows[more // 2] = '7.jpg,"a ""big"", brown\ndog"'
    (tmp_path / "t.csv").write_text("\n".join(["image,caption", "0.jpg,first", row, *rows]))
    _, records = read(tmp_path / "t.csv", images=tmp_path)
    assert reasons(records) == ["", UNREADABLE_ROW, *[""] * more]
    assert 'a "big", brown\ndog' in {record.caption for record in records if isinstance(record, Record)}


def test_paths_of_other_systems_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in (b"sub/1.jpg", unicodedata.normalize("NFD", "é.jpg").encode(), b"50% off?.jpg"):
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    rows = [
        ("sub\\1.jpg", "a"),
        (unicodedata.normalize("NFC", "é.jpg"), "b"),
        ("50% off?.jpg", "c"),
        ("..\\1.jpg", "d"),
    ]
    reader, records = read(write_csv(tmp_path / "t.csv", rows), images=tmp_path)
    assert [reader.image(record)[-4:] for record in records[:3]] == [b".jpg"] * 3
    assert records[3].reason == "image path that leaves the collection"


def test_files_that_are_none_are_counted_and_folders_behind_links_read(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write_csv(tmp_path / "elsewhere/t.csv")
    os.mkfifo(tmp_path / "in/a.csv")
    (tmp_path / "in/b.csv").symlink_to("nowhere")
    (tmp_path / "in/c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/d").symlink_to(tmp_path / "in")
    _, records = read(tmp_path / "in", images=tmp_path)
    assert [record.id for record in records] == ["a.csv:0", "b.csv:0", "c/t.csv:0", "c/t.csv:1", "c/t.csv:2"]
    for path in (tmp_path / "in/a.csv", "/dev/zero", tmp_path / "in/b.csv"):
        with pytest.raises(InputError, match="not a regular file|No such file"):
            read(path, images=tmp_path)
