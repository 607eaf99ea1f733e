"""Reads conversations about images from JSON files in the format of LLaVA or ShareGPT.

    [{"id": ..., "image": "coco/000.jpg", "conversations": [...]}, ...], or one such object per line
        ->  Record(turns, image)                                         image location: (path below `images`,)

Entries without an image are kept as text. Messages are read by data_prep/inputs/dialogue.py.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.inputs.config import ConversationsConfig
from data_prep.inputs.dialogue import Dialogue, find_messages, read_dialogue
from data_prep.inputs.files import ImageFiles, check_path, entries_of, matching_files
from data_prep.inputs.readers.json_stream import json_entries
from data_prep.inputs.record import Dropped, Record, entry_id
from data_prep.inputs.skipped_input import SkippedInput
from ufork.errors import InputError

_SUFFIXES = (".json", ".jsonl")
_IMAGE_KEYS = ("image", "images")


class Conversations:
    """Reads JSON and JSONL files of conversations."""

    def __init__(self, config: ConversationsConfig) -> None:
        """Raises InputError if there are no such files, or the image folder does not exist."""
        self._config = config
        self._paths = matching_files(config.path, _SUFFIXES)
        self._images = (
            ImageFiles(config.images, max_bytes=config.max_image_bytes, follow_links=config.follow_links)
            if config.images
            else None
        )

    def records(self) -> Iterator[Record | Dropped]:
        """Implements `Input`: file by file in order of their names."""
        for file, number, entry in entries_of(self._paths, json_entries):
            if isinstance(entry, SkippedInput):
                yield Dropped(entry_id(file, number), entry.reason)
            else:
                yield self._record(entry, entry_id(file, number, entry.get("id")))

    def image(self, record: Record) -> bytes:
        """Implements `Input`."""
        assert record.image is not None, record.id
        return self._folder.read(str(record.image[0]))

    @property
    def _folder(self) -> ImageFiles:
        if self._images is None:
            raise InputError(f"{self._config.path}: its entries have images; set input.images to the folder of images")
        return self._images

    def _record(self, entry: Mapping[str, Any], id: str) -> Record | Dropped:
        try:
            dialogue = read_dialogue(find_messages(entry), max_chars=self._config.max_text_chars)
            image = image_path(entry, dialogue)
            if image is not None:
                check_path(image)
        except SkippedInput as skip:
            return Dropped(id, skip.reason)
        if image is None:
            return Record(id=id, turns=dialogue.turns)
        assert self._folder
        return Record(id=id, turns=dialogue.turns, image=(image,))


def image_path(entry: Mapping[str, Any], dialogue: Dialogue) -> str | None:
    """Returns the image path of an entry; None for text without an image.

    Raises:
        SkippedInput: the entry has several images, a video, or an image marker without an image.
    """
    if entry.get("video") or entry.get("videos"):
        raise SkippedInput("video")
    paths: list[Any] = []
    for key in _IMAGE_KEYS:
        value = entry.get(key)
        paths += value if isinstance(value, list) else [value] if value else []
    paths = paths or list(dialogue.paths)
    if len(paths) > 1 or dialogue.markers > 1:
        raise SkippedInput("more than one image")
    if not paths:
        if dialogue.markers:
            raise SkippedInput("image marker without an image")
        return None
    if not isinstance(paths[0], str):
        raise SkippedInput("image path that is not text")
    return paths[0]
