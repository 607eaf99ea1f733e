"""Describes scenes in words.

A group is "a dog", "an apple" or "three red apples". Two groups are joined by their relation or by "and". A background
other than white is added: "two red apples left of a dog on a blue background". A colour that is not named is natural, a
background that is not named is white.
"""

from data_prep.demo.scene_grammar import COUNT_WORDS, Group, Scene
from data_prep.demo.sprites import KINDS, NATURAL

_PLURALS = {kind.name: kind.plural for kind in KINDS}


def with_article(words: str) -> str:
    """Returns `words` with the article "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def noun(kind: str, count: int) -> str:
    """Returns the name of a kind in the singular or plural, depending on `count`."""
    return kind if count == 1 else _PLURALS[kind]


def describe_group(group: Group) -> str:
    """Describes one group, such as "three red apples"."""
    words = noun(group.kind, group.count)
    if group.colour != NATURAL:
        words = f"{group.colour} {words}"
    return with_article(words) if group.count == 1 else f"{COUNT_WORDS[group.count]} {words}"


def describe(scene: Scene) -> str:
    """Returns the drawing prompt of a scene."""
    caption = f" {scene.relation or 'and'} ".join(describe_group(group) for group in scene.groups)
    if scene.named_background:
        caption += f" on {with_article(scene.named_background)} background"
    return caption
