"""Groups the members of a tar into entries, each of which has a key and is an image with its texts.

    KEY.EXTENSION           an extension that is known, or that input.extensions maps -> member of the entry KEY
    KEY.OTHER               any other extension -> member of the entry KEY, which is not used
    links, names without an extension, hidden files -> entries of their own, or parts of one, that cannot be used

A name is split where the longest known extension begins, so that keys may have dots: `v1.5 a.jpg` has the key `v1.5 a`.
If there is none, the key ends at the first dot, as in WebDataset. Neighbouring members with the same key are one entry;
members of an entry KEY.MORE may stand between those of the entry KEY.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from mmap import mmap

from data_prep.inputs.files import check_hidden
from data_prep.inputs.skipped_input import SkippedInput
from ufork.data.shards.tar import BLOCK_BYTES, TarMember, tar_members
from ufork.errors import ShardError

IMAGE, CAPTION, METADATA, CLASS = "image", "caption", "metadata", "class"
MAX_TEXT_BYTES = 2**20
"""Size of the largest text or metadata that is used."""

_FILES, _FOLDERS = b"07\0", b"5DV"
"""Type flags of files, and of folders and labels, which hold nothing."""
_NOT_STORED = {
    b"1": "image or text that is a link in the tar; pack it with `tar --hard-dereference --dereference`",
    b"2": "image or text that is a link in the tar; pack it with `tar --hard-dereference --dereference`",
    b"S": "image or text that is a sparse file in the tar; pack it without `--sparse`",
}
"""Why a member of a type has no contents that can be read where it stands."""
_MAX_PADDING_BYTES = 2**26
"""Zeros that may follow a tar. Programs write some kilobytes; files of holes could have terabytes."""
_NOT_ZERO = re.compile(rb"[^\0]")


@dataclass
class TarEntry:
    """Members of one key that can be used, by extension."""

    key: str
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Offset and size of each member."""
    texts: dict[str, bytes] = field(default_factory=dict)
    """Contents of all members except images, up to one byte more than MAX_TEXT_BYTES."""
    repeated: bool = False
    """Whether an extension occurred twice."""
    not_stored: str | None = None
    """Why a member that would be used cannot be read."""

    @property
    def is_whole(self) -> bool:
        """Whether there is an image and a text."""
        return 0 < len(self.texts) < len(self.spans)


def tar_entries(data: mmap, where: str, roles: Mapping[str, str]) -> Iterator[TarEntry | SkippedInput]:
    """Yields the entries of a tar, or of several that were joined by `cat`.

    Args:
        data: contents of the file.
        where: its name in errors.
        roles: what members with an extension hold: IMAGE, CAPTION, METADATA, CLASS, or anything else to ignore them.

    Raises:
        ShardError: the tar is truncated or damaged. Whole entries before the damage have been yielded.
    """
    current: TarEntry | None = None
    further: TarEntry | None = None  # its key continues that of `current`, whose members may go on behind it
    fault: ShardError | None = None
    members = _all_members(data, where)
    while True:
        try:
            member = next(members, None)
        except ShardError as error:
            member, fault = None, error
        if member is None:
            break
        if member.type in _FOLDERS or member.name.endswith("/"):
            continue
        try:
            _check(member)
        except SkippedInput as skip:
            yield skip
            continue
        key, extension = _split(member.name, roles)
        if extension not in roles and current is not None and member.name.startswith(f"{current.key}."):
            key = current.key
        entry = next((known for known in (current, further) if known is not None and known.key == key), None)
        if entry is None:
            entry = TarEntry(key)
            if current is not None and key.startswith(f"{current.key}."):
                if further is not None:
                    yield further
                further = entry
            else:
                yield from _present(current, further)
                current, further = entry, None
        if extension in roles:
            _add(entry, member, extension, data, roles[extension])
    yield from (entry for entry in _present(current, further) if fault is None or entry.is_whole)
    if fault is not None:
        raise fault


def _present(*entries: TarEntry | None) -> Iterator[TarEntry]:
    return (entry for entry in entries if entry is not None)


def _all_members(data: mmap, where: str) -> Iterator[TarMember]:
    """Yields the members of the first tar in the file and of those that follow its end mark."""
    position = 0
    while True:
        end = yield from tar_members(data, where, position)
        more = _NOT_ZERO.search(data, end, end + _MAX_PADDING_BYTES)
        if more is None and end + _MAX_PADDING_BYTES < len(data):
            raise ShardError(f"{where}: more than {_MAX_PADDING_BYTES} zeros at byte {end}; cut the file there")
        if more is None:
            return
        position = more.start() // BLOCK_BYTES * BLOCK_BYTES


def _check(member: TarMember) -> None:
    check_hidden(member.name)
    if member.type not in _FILES and member.type not in _NOT_STORED:
        raise SkippedInput("device, pipe or part of a file in the tar")


def _split(name: str, roles: Mapping[str, str]) -> tuple[str, str]:
    """Splits a member's name into key and extension: "a/b.Cls.txt" becomes ("a/b", "cls.txt")."""
    folder, slash, file_name = name.rpartition("/")
    most_dots = 1 + max(known.count(".") for known in roles)
    parts = file_name.rsplit(".", most_dots)
    for count in range(1, len(parts)):
        extension = ".".join(parts[count:]).lower()
        if extension in roles:
            return folder + slash + ".".join(parts[:count]), extension
    key, _, extension = file_name.partition(".")
    return folder + slash + key, extension.lower()


def _add(entry: TarEntry, member: TarMember, extension: str, data: mmap, role: str) -> None:
    if role not in (IMAGE, CAPTION, METADATA, CLASS):
        return
    if member.type in _NOT_STORED:
        entry.not_stored = _NOT_STORED[member.type]
        return
    entry.repeated = entry.repeated or extension in entry.spans
    entry.spans[extension] = member.offset, member.size
    if role != IMAGE:
        entry.texts[extension] = data[member.offset : member.offset + min(member.size, MAX_TEXT_BYTES + 1)]
