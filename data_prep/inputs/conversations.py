"""Reads conversations about images from JSON files in the format of LLaVA or ShareGPT.

    [{"id": ..., "image": "coco/000.jpg", "conversations": [...]}, ...], or one such object per line
        ->  Record(turns, image)                                         image location: (path below `images`,)

Entries without an image are kept as text. Messages are read by data_prep/inputs/dialogue.py.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from data_prep.inputs.config import ConversationsConfig
from data_prep.inputs.dialogue import MESSAGES_KEYS, Dialogue, read_dialogue, system_of
from data_prep.inputs.files import ImageFiles, check_path, entries_of, matching_files
from data_prep.inputs.readers.json_stream import json_entries
from data_prep.inputs.record import Dropped, Record, entry_id
from data_prep.inputs.skipped_input import SkippedInput
from ufork.errors import InputError

_SUFFIXES = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz")
_IMAGE_KEYS = (("image", "images"), ("image_path", "image_paths"), ("img", "img_path"), ("image_file",))
"""Keys of the images of an entry; the first group counts that has any."""
_OTHER_KEYS = ("video", "videos", "audio", "audios")
_PATH_KEYS = ("path", "image", "url", "file_name")
_MAX_PATH_CHARS = 4096


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
        for file, number, entry in entries_of(self._paths, partial(json_entries, entry_keys=MESSAGES_KEYS)):
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
            messages = next((entry[key] for key in MESSAGES_KEYS if entry.get(key) is not None), None)
            if messages is None:
                raise SkippedInput("no conversations or messages")
            dialogue = read_dialogue(messages, max_chars=self._config.max_text_chars, system=system_of(entry))
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
        SkippedInput: the entry has several images, a video or sound, an image marker without an image, or an image that
            is no file.
    """
    if any(entry.get(key) for key in _OTHER_KEYS):
        raise SkippedInput("video or audio")
    groups = ([image for key in keys for image in _several(entry.get(key))] for keys in _IMAGE_KEYS)
    given = next(filter(None, groups), list(dialogue.images))
    if len(given) > 1 or dialogue.num_images > 1:
        raise SkippedInput("more than one image")
    if not given:
        if dialogue.num_images:
            raise SkippedInput("image marker without an image")
        return None
    path = given[0]
    if isinstance(path, Mapping):
        path = next((path[key] for key in _PATH_KEYS if path.get(key)), None)
    if not isinstance(path, str):
        raise SkippedInput("image path that is not text")
    if path.startswith(("http://", "https://")):
        raise SkippedInput("image is a URL")
    if path.startswith("data:") or len(path) > _MAX_PATH_CHARS:
        raise SkippedInput("image inside the JSON; write it to a file")
    return path


def _several(value: Any) -> list[Any]:
    return [item for item in (value if isinstance(value, list) else [value]) if item]
