"""The interface that all collections of images and text are read through, independent of their format.

Input.records()      ->  Record | Dropped, always in the same order: text, and the location of the image
Input.image(record)  ->  bytes of the image file, in any order and from any process
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

ImageLocation = tuple[str | int, ...]
"""Location of an image, in the terms of its input: (path,), (tar, offset, size), (row,), ...; small JSON values."""

_MAX_OWN_ID_CHARS = 200


@dataclass(frozen=True, kw_only=True)
class Record:
    """One entry of an input: its text, and where its image is stored. The image is read only when it is needed."""

    id: str
    """Unique in the input: made by `entry_id`, or the path of a file."""
    image: ImageLocation | None = None
    """Location of the image; None for text without an image."""
    caption: str = ""
    """Description of the image."""
    class_name: str = ""
    """Class of the image in words, for inputs that have classes instead of captions."""
    turns: tuple[tuple[str, str], ...] = ()
    """Dialogue turns in order: (question, answer)."""
    licence: str = ""
    """Licence of this entry; if empty, that of the whole input applies."""


@dataclass(frozen=True)
class Dropped:
    """An entry that cannot be used and is skipped."""

    id: str
    """The entry's id if it has one, else file and entry number."""
    reason: str
    """Why it is skipped, worded so that equal reasons can be counted, such as "more than one image"."""


class Input(Protocol):
    """A collection on disk. It is built from its config alone, so that every process reads the same."""

    def records(self) -> Iterator[Record | Dropped]:
        """Yields all entries, always in the same order, in memory that does not grow with their number.

        Raises:
            InputError: no file of the collection can be read.
        """

    def image(self, record: Record) -> bytes:
        """Reads the undecoded image file of a record that has one.

        Raises:
            SampleError: the image is missing, too large, or outside the collection.
        """


def entry_id(file: str, number: int, own_id: object = "") -> str:
    """Returns the id of entry `number` of `file`: "file:number", followed by the collection's own id if there is one.

    File and number make the id unique. Own ids may repeat, and checking them would take memory for all of them.
    """
    unique = f"{file}:{number}"
    return printable(unique if own_id in ("", None) else f"{unique}:{str(own_id)[:_MAX_OWN_ID_CHARS]}")


def printable(name: str) -> str:
    """Returns `name` with invalid Unicode, such as in file names of another encoding, replaced by escape sequences."""
    return name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
