"""Reads tars of images and texts: those of img2dataset (CC3M, LAION) and ImageNet as WebDataset.

    KEY.jpg  KEY.txt   a caption                                    image location: (tar, offset of the image, size)
             KEY.json  {"caption": ..., "license": ...}
             KEY.cls   number or name of a class                    ->  Record(caption, class_name, licence)

Neighbouring members with the same key are one entry. Nothing is unpacked, so names of members are never used as paths.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from data_prep.inputs.class_names import read_class_names
from data_prep.inputs.config import TarsConfig
from data_prep.inputs.files import IMAGE_SUFFIXES, TOO_LARGE, entries_of, matching_files
from data_prep.inputs.record import Dropped, Record, entry_id
from data_prep.inputs.skipped_input import SkippedInput
from data_prep.inputs.text import licence_of, usable_caption, usable_text
from ufork.data.shards.index import scan_members, split_name
from ufork.errors import InputError, SampleError, ShardError

_SUFFIXES = (".tar", ".tar.gz", ".tgz")
"""Compressed tars are matched so that they are refused rather than ignored."""
_IMAGES = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
_CAPTION, _METADATA, _CLASSES = "txt", "json", ("cls", "cls.txt")
_MAX_METADATA_BYTES = 2**20
_DOWNLOADED = "success"
_GZIP_START = b"\x1f\x8b"


@dataclass
class _Entry:
    """Members of one key, by extension."""

    key: str
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Offset and size of each member."""
    texts: dict[str, bytes] = field(default_factory=dict)
    """Contents of all members except images."""
    repeated: bool = False
    """Whether an extension occurred twice."""


class ForeignTars:
    """Reads tars that were not written by ufork."""

    def __init__(self, config: TarsConfig) -> None:
        """Raises InputError if there are no tars, or the file of class names does not exist."""
        self._config = config
        self._tars = matching_files(config.path, _SUFFIXES)
        self._names = read_class_names(config.class_names) if config.class_names else {}

    def records(self) -> Iterator[Record | Dropped]:
        """Implements `Input`: tar by tar in order of their names."""
        for tar, number, entry in entries_of(self._tars, self._entries):
            if isinstance(entry, SkippedInput):
                yield Dropped(entry_id(tar, number), entry.reason)
            else:
                yield self._record(tar, number, entry)

    def image(self, record: Record) -> bytes:
        """Implements `Input`."""
        assert record.image is not None, record.id
        tar, offset, size = str(record.image[0]), int(record.image[1]), int(record.image[2])
        try:
            descriptor = os.open(self._tars[tar], os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(descriptor, size, offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise SampleError(f"tar cannot be read: {error.strerror}", sample=record.id) from None
        if len(data) < size:
            raise SampleError("tar that was truncated after its entries were listed", sample=record.id)
        return data

    def _entries(self, path: Path) -> Iterator[_Entry]:
        """Yields the entries of a tar; raises InputError where it cannot be read further."""
        try:
            with open(path, "rb") as file:
                if not (size := os.fstat(file.fileno()).st_size):
                    raise InputError(f"{path}: is empty")
                if file.read(2) == _GZIP_START:
                    raise InputError(
                        f"{path}: is compressed, so its members cannot be read separately; `gunzip` it first"
                    )
                with mmap(file.fileno(), size, access=ACCESS_READ) as data:
                    yield from _grouped(data, str(path))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        except ShardError as error:
            raise InputError(str(error)) from None

    def _record(self, tar: str, number: int, entry: _Entry) -> Record | Dropped:
        id = entry_id(tar, number, entry.key)
        try:
            offset, size = self._image_span(entry)
            metadata = _metadata(entry)
            caption = self._caption(entry, metadata)
            class_name = self._class_name(entry)
            if not caption and not class_name:
                raise SkippedInput("neither caption nor class")
            licence = licence_of(metadata, self._config.licence_key)
        except SkippedInput as skip:
            return Dropped(id, skip.reason)
        return Record(id=id, image=(tar, offset, size), caption=caption, class_name=class_name, licence=licence)

    def _image_span(self, entry: _Entry) -> tuple[int, int]:
        images = [entry.spans[name] for name in _IMAGES if name in entry.spans]
        if not images:
            raise SkippedInput("no image beside the text")
        if len(images) > 1 or entry.repeated:
            raise SkippedInput("more than one image or text of the same name")
        if images[0][1] > self._config.max_image_bytes:
            raise SkippedInput(TOO_LARGE)
        return images[0]

    def _caption(self, entry: _Entry, metadata: dict[str, Any]) -> str:
        text = entry.texts.get(_CAPTION)
        value = metadata.get(self._config.caption_key) if text is None else _decoded(text)
        return "" if value is None else usable_caption(value, max_chars=self._config.max_text_chars)

    def _class_name(self, entry: _Entry) -> str:
        value = next((_decoded(entry.texts[name]) for name in _CLASSES if name in entry.texts), None)
        if value is None:
            return ""
        name = usable_text(value, what="class", max_chars=self._config.max_text_chars)
        if name in self._names:
            return self._names[name]
        if name.isdigit():
            raise SkippedInput("class number without a name in class_names")
        return name


def _grouped(data: mmap, where: str) -> Iterator[_Entry]:
    entry = _Entry("")
    for name, offset, size in scan_members(data, where):
        key, extension = split_name(name)
        if key and key != entry.key:
            if entry.spans:
                yield entry
            entry = _Entry(key)
        if key and extension in (*_IMAGES, _CAPTION, _METADATA, *_CLASSES):
            entry.repeated = entry.repeated or extension in entry.spans
            entry.spans[extension] = offset, size
            if extension not in _IMAGES:
                entry.texts[extension] = data[offset : offset + min(size, _MAX_METADATA_BYTES + 1)]
    if entry.spans:
        yield entry


def _metadata(entry: _Entry) -> dict[str, Any]:
    if _METADATA not in entry.texts:
        return {}
    try:
        metadata = json.loads(_decoded(entry.texts[_METADATA]))
    except (ValueError, RecursionError):
        raise SkippedInput("metadata that is not JSON") from None
    if not isinstance(metadata, dict):
        raise SkippedInput("metadata that is not an object")
    if metadata.get("status", _DOWNLOADED) != _DOWNLOADED:
        raise SkippedInput("image that img2dataset could not download")
    return metadata


def _decoded(text: bytes) -> str:
    if len(text) > _MAX_METADATA_BYTES:
        raise SkippedInput("text or metadata that is too large")
    return text.decode("utf-8-sig", "surrogateescape")
