"""Reads tars of images and texts: those of img2dataset (CC3M, LAION) and ImageNet as WebDataset.

    KEY.jpg  KEY.txt   a caption                                    image location: (tar, offset of the image, size)
             KEY.json  {"caption": ..., "license": ...}
             KEY.cls   number or name of a class                    ->  Record(caption, class_name, licence)

Members are grouped by readers/tar_entries.py. Nothing is unpacked, so names of members are never used as paths.
"""

import json
import os
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from data_prep.inputs.class_names import class_name_of, read_class_names
from data_prep.inputs.config import TarsConfig
from data_prep.inputs.files import IMAGE_SUFFIXES, TOO_LARGE, entries_of, matching_files
from data_prep.inputs.readers.tar_entries import CAPTION, CLASS, IMAGE, MAX_TEXT_BYTES, METADATA, TarEntry, tar_entries
from data_prep.inputs.record import Dropped, Record, entry_id
from data_prep.inputs.skipped_input import SkippedInput
from data_prep.inputs.text import field_of, licence_of, usable_caption
from ufork.errors import OUTAGES, InputError, SampleError, ShardError
from ufork.files import read_at

_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tzst", *(f".tar.{name}" for name in ("gz", "bz2", "xz", "zst", "lz4")))
"""Compressed tars are matched so that they are refused rather than ignored."""
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ\0": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"\x04\x22\x4d\x18": "unlz4",
    b"PK\3\4": "unzip",
}
"""First bytes of compressed files, and the programs that unpack them."""
_EXTENSIONS = {
    **{suffix.removeprefix("."): IMAGE for suffix in IMAGE_SUFFIXES},
    **{"txt": CAPTION, "json": METADATA, "cls": CLASS, "cls.txt": CLASS},
}
_DOWNLOADED = "success"
_GROUPING = (
    "; members of an entry must follow each other (`tar --sort=name`) and have one key"
    " (input.extensions={input.jpg: image} reads KEY.input.jpg)"
)
_NO_IMAGE = f"no image ({', '.join(IMAGE_SUFFIXES)}) beside the text{_GROUPING}"
_NO_TEXT = f"neither caption nor class beside the image{_GROUPING}; input.caption_key names the caption in KEY.json"
_SEVERAL = "more than one image or text of the same name; input.extensions can ignore some"


class ForeignTars:
    """Reads tars that were not written by ufork."""

    def __init__(self, config: TarsConfig) -> None:
        """Raises InputError if there are no tars, or the file of class names does not exist."""
        self._config = config
        self._tars = matching_files(config.path, _SUFFIXES)
        self._names = read_class_names(config.class_names) if config.class_names else {}
        self._roles = {**_EXTENSIONS, **config.extensions}

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
                data = read_at(descriptor, size, offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in OUTAGES:
                raise
            raise SampleError(f"tar cannot be read: {error.strerror}", sample=record.id) from None
        if len(data) < size:
            raise SampleError("tar that was truncated after its entries were listed", sample=record.id)
        return data

    def _entries(self, path: Path) -> Iterator[TarEntry | SkippedInput]:
        """Yields the entries of a tar; raises InputError where it cannot be read further."""
        try:
            with open(path, "rb") as file:
                if not (size := os.fstat(file.fileno()).st_size):
                    raise InputError(f"{path}: is empty")
                with mmap(file.fileno(), size, access=ACCESS_READ) as data:
                    for start, program in _COMPRESSED.items():
                        if data[: len(start)] == start:
                            raise InputError(
                                f"{path}: is compressed, so its members cannot be read separately; `{program}` it first"
                            )
                    yield from tar_entries(data, str(path), self._roles)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        except ShardError as error:
            raise InputError(str(error)) from None

    def _record(self, tar: str, number: int, entry: TarEntry) -> Record | Dropped:
        id = entry_id(tar, number, entry.key)
        try:
            offset, size = self._image_span(entry)
            metadata = self._metadata(entry)
            caption = self._caption(entry, metadata)
            class_name = self._class_name(entry)
            if not caption and not class_name:
                raise SkippedInput(entry.not_stored or _NO_TEXT)
            licence = licence_of(metadata, self._config.licence_key)
        except SkippedInput as skip:
            return Dropped(id, skip.reason)
        return Record(id=id, image=(tar, offset, size), caption=caption, class_name=class_name, licence=licence)

    def _extensions(self, entry: TarEntry, role: str) -> list[str]:
        return [extension for extension in entry.spans if self._roles[extension] == role]

    def _image_span(self, entry: TarEntry) -> tuple[int, int]:
        images = self._extensions(entry, IMAGE)
        if not images:
            unnamed = "no member that is an image or text by its name; input.extensions sets what others hold"
            raise SkippedInput(entry.not_stored or (_NO_IMAGE if entry.spans else unnamed))
        if len(images) > 1 or entry.repeated:
            raise SkippedInput(_SEVERAL)
        offset, size = entry.spans[images[0]]
        if size > self._config.max_image_bytes:
            raise SkippedInput(TOO_LARGE)
        return offset, size

    def _text(self, entry: TarEntry, role: str) -> str | None:
        extensions = self._extensions(entry, role)
        if len(extensions) > 1:
            raise SkippedInput(_SEVERAL)
        return _decoded(entry.texts[extensions[0]]) if extensions else None

    def _metadata(self, entry: TarEntry) -> dict[str, Any]:
        text = self._text(entry, METADATA)
        try:
            metadata = {} if text is None else json.loads(text)
        except (ValueError, RecursionError):
            raise SkippedInput("metadata that is not JSON") from None
        if not isinstance(metadata, dict):
            raise SkippedInput("metadata that is not an object")
        if metadata.get("status", _DOWNLOADED) != _DOWNLOADED:
            raise SkippedInput("image that img2dataset could not download")
        return metadata

    def _caption(self, entry: TarEntry, metadata: dict[str, Any]) -> str:
        text = self._text(entry, CAPTION)
        value = field_of(metadata, self._config.caption_key) if text is None else text
        return "" if value is None else usable_caption(value, max_chars=self._config.max_text_chars)

    def _class_name(self, entry: TarEntry) -> str:
        value = self._text(entry, CLASS)
        if value is None:
            return ""
        return class_name_of(value, self._names, max_chars=self._config.max_text_chars)


def _decoded(text: bytes) -> str:
    if len(text) > MAX_TEXT_BYTES:
        raise SkippedInput("text or metadata that is too large")
    return text.decode("utf-8-sig", "surrogateescape")
