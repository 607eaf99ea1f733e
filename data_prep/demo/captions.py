"""Scenes in words.

Group: "a dog", "an apple", "three red apples"; two groups are joined by the relation or by "and"; a background other
than white follows: "two red apples left of a dog on a blue background". What is not named is natural, or white.
"""

from data_prep.demo.scene_grammar import COUNT_WORDS, Group, Scene
from data_prep.demo.sprites import KINDS, NATURAL

_PLURALS = {kind.name: kind.plural for kind in KINDS}


def with_article(words: str) -> str:
    """`words` after "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def noun(kind: str, count: int) -> str:
    """The kind's name in the number that `count` asks for."""
    return kind if count == 1 else _PLURALS[kind]


def describe_group(group: Group) -> str:
    """As "three red apples"."""
    words = noun(group.kind, group.count)
    if group.colour != NATURAL:
        words = f"{group.colour} {words}"
    return with_article(words) if group.count == 1 else f"{COUNT_WORDS[group.count]} {words}"


def describe(scene: Scene) -> str:
    """The drawing prompt of a scene."""
    caption = f" {scene.relation or 'and'} ".join(describe_group(group) for group in scene.groups)
    if scene.named_background:
        caption += f" on {with_article(scene.named_background)} background"
    return caption
