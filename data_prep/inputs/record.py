"""What any collection of images and text is read as, whatever its format.

Input.records() -> Record | Dropped, in an order that never changes      text, and where the image lies
Input.image(record) -> the image file's bytes                            in any order, by any process
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

ImageLocation = tuple[str | int, ...]
"""Where an image lies, in its input's own terms: (path,), (tar, offset, size), (row,), ...; JSON-able and light."""

_MAX_OWN_ID_CHARS = 200


@dataclass(frozen=True, kw_only=True)
class Record:
    """One entry of an input. Its text is here, its image is read when it is needed."""

    id: str
    """Unique in the input, as `entry_id` makes it, or the path of a file."""
    image: ImageLocation | None = None
    """None for text without an image."""
    caption: str = ""
    """What the image shows."""
    class_name: str = ""
    """What the image shows one of, in words; for inputs that have classes in place of captions."""
    turns: tuple[tuple[str, str], ...] = ()
    """Questions and answers in order."""
    licence: str = ""
    """Of this entry; the input's own where it is empty."""


@dataclass(frozen=True)
class Dropped:
    """An entry that is left out."""

    id: str
    """As precisely as it can be named: the entry's own id, or file and line."""
    reason: str
    """In words under which such entries are counted together, as "more than one image"."""


class Input(Protocol):
    """A collection on disk. Built from its config alone, so that any process can build it and read the same."""

    def records(self) -> Iterator[Record | Dropped]:
        """All entries, in the same order every time, in memory that does not grow with their number.

        Raises:
            InputError: a file of the collection cannot be read at all.
        """

    def image(self, record: Record) -> bytes:
        """The image file of a record that has one, undecoded.

        Raises:
            SampleError: it is not there, too large, or outside the collection.
        """


def entry_id(file: str, number: int, own_id: object = "") -> str:
    """The id of entry `number` of `file`, with the id that the collection gives it behind.

    Collections repeat their own ids; to see that would take all of them in memory. File and number cannot repeat.
    """
    place = f"{file}:{number}"
    return printable(place if own_id in ("", None) else f"{place}:{str(own_id)[:_MAX_OWN_ID_CHARS]}")


def printable(name: str) -> str:
    """`name` with what is not valid Unicode, as in file names of another encoding, written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
