"""Reads images in class folders.

    ROOT/CLASS/*.jpg, also in deeper folders  ->  Record(class_name)       image location: (path below ROOT,)

The class is that of the nearest folder above the image with a name in `class_names`; without such a file, the name of
the image's own folder. Folders are sorted one at a time, so that memory does not grow with the collection.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.inputs.class_names import first_name, read_class_names
from data_prep.inputs.config import ImageFolderConfig
from data_prep.inputs.files import IMAGE_SUFFIXES, ImageFiles, check_hidden, check_path, files_below
from data_prep.inputs.record import Dropped, Record, printable
from data_prep.inputs.skipped_input import SkippedInput
from data_prep.inputs.text import usable_text
from ufork.errors import InputError


class ImageFolder:
    """Reads images in class folders."""

    def __init__(self, config: ImageFolderConfig) -> None:
        """Raises InputError if the folder or the file of class names does not exist."""
        self._config = config
        self._files = ImageFiles(config.path, max_bytes=config.max_image_bytes, follow_links=config.follow_links)
        self._names = read_class_names(config.class_names) if config.class_names else None

    def records(self) -> Iterator[Record | Dropped]:
        """Implements `Input`: the files of a folder by name, then the folders in it."""
        found = False
        for path, reason in files_below(self._config.path, follow_links=self._config.follow_links):
            found = True
            yield self._record(path) if reason is None else Dropped(printable(path), reason)
        if not found:
            raise InputError(f"{self._config.path}: found no files; expected images as CLASS/NAME.jpg")

    def image(self, record: Record) -> bytes:
        """Implements `Input`."""
        assert record.image is not None, record.id
        return self._files.read(str(record.image[0]))

    def _record(self, path: str) -> Record | Dropped:
        try:
            check_path(path)
            check_hidden(path)
            if not path.lower().endswith(IMAGE_SUFFIXES):
                raise SkippedInput("not an image file by its name")
            return Record(id=path, image=(path,), class_name=self._class_name(path))
        except SkippedInput as skip:
            return Dropped(printable(path), skip.reason)

    def _class_name(self, path: str) -> str:
        folders = Path(path).parent.parts
        if not folders:
            raise SkippedInput(
                "image in no class's folder; put it in CLASS/, use `ufork shard captions` if a table has its caption,"
                " or `tar --sort=name` and `ufork shard tars` if a .txt beside it has"
            )
        if self._names is None:
            return usable_text(first_name(folders[-1]), what="class name", max_chars=self._config.max_text_chars)
        for folder in reversed(folders):
            if folder in self._names:
                return self._names[folder]
        raise SkippedInput("folder without a name in class_names")
