"""Chooses the combinations of known elements that are held out of training.

    scene         ->  keys_of          ->  keys of all combinations in its picture
    config, seed  ->  choose_held_out  ->  HeldOut

A training scene contains no held-out key of any skill. A held-out scene contains exactly one, of its skill, so it
tests that combination alone, which training has never shown. Held-out keys are spread evenly over kinds, tints, counts,
backgrounds and relations: each of these keeps most of its combinations in training, and none is the likely answer to
held-out questions.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, permutations

from data_prep.demo.scene_grammar import OPPOSITES, SKILLS, ScenesConfig, relations_between
from data_prep.demo.sprites import NATURAL, WHITE, Placed

Key = tuple[str | int, ...]
"""A combination: its skill, then its elements in canonical order, the background last:

("single_object", kind, background), for a single object of natural colour
("two_objects", kind, kind, background), sorted
("counting", kind, count, background)
("colours", kind, tint, background)
("position", kind, "left of" | "above", kind, background)
("attribute_binding", kind, tint, kind, tint, background), sorted by kind

The background is part of the key so that training shows the same elements on other backgrounds. Otherwise a kind would
never have certain counts, tints or neighbours in training, and a model that learns this would score below chance.
"""

_CANONICAL_RELATIONS = ("left of", "above")


def relation_key(first: str, relation: str, second: str, background: str) -> Key:
    """Returns the key of a relation between kinds; "a right of b" has the key of "b left of a"."""
    if relation not in _CANONICAL_RELATIONS:
        first, relation, second = second, OPPOSITES[relation], first
    return ("position", first, relation, second, background)


def binding_key(first: tuple[str, str], second: tuple[str, str], background: str) -> Key:
    """Returns the key of two pairs (kind, tint)."""
    return ("attribute_binding", *min(first, second), *max(first, second), background)


def keys_of(background: str, objects: Iterable[Placed], sprite_px: int) -> set[Key]:
    """Returns the keys of all combinations in a picture, whether or not its scene was made for them."""
    objects = tuple(objects)
    counts = Counter(placed.kind for placed in objects)
    keys: set[Key] = {("counting", kind, count, background) for kind, count in counts.items() if count > 1}
    keys |= {("colours", placed.kind, placed.colour, background) for placed in objects if placed.colour != NATURAL}
    if len(objects) == 1 and objects[0].colour == NATURAL:
        keys.add(("single_object", objects[0].kind, background))
    for first, second in combinations(objects, 2):
        if first.kind == second.kind:
            continue
        keys.add(("two_objects", min(first.kind, second.kind), max(first.kind, second.kind), background))
        relations = relations_between(first, second, sprite_px)
        keys |= {relation_key(first.kind, relation, second.kind, background) for relation in relations}
        if first.colour != second.colour and NATURAL not in (first.colour, second.colour):
            keys.add(binding_key((first.kind, first.colour), (second.kind, second.colour), background))
    return keys


@dataclass(frozen=True)
class HeldOut:
    """Keys that never occur in training."""

    by_skill: dict[str, tuple[Key, ...]]
    keys: frozenset[Key]

    def within(self, background: str, objects: Iterable[Placed], sprite_px: int) -> set[Key]:
        """Returns the held-out keys in a picture."""
        return keys_of(background, objects, sprite_px) & self.keys


def choose_held_out(config: ScenesConfig, seed: int) -> HeldOut:
    """Chooses `config.held_out_share` of the keys of each skill, depending on the vocabulary and the seed.

    A single object on white is never held out: white is the background of all prompts that name none. Relations and
    bindings are chosen among pairs and tints that are not held out, so that each held-out scene is new in one way only.
    """
    kinds, grounds, tints = config.kind_names, config.backgrounds, config.tints
    by_skill: dict[str, tuple[Key, ...]] = {}

    def choose(candidates: Iterable[Key]) -> None:
        unchosen = [key for key in candidates if not _implied(key) & {k for keys in by_skill.values() for k in keys}]
        by_skill[str(unchosen[0][0])] = _spread(unchosen, config.held_out_share, seed)

    choose(("single_object", kind, ground) for kind in kinds for ground in grounds if ground != WHITE)
    choose(("two_objects", *sorted(pair), ground) for pair in combinations(kinds, 2) for ground in grounds)
    counts = range(2, config.max_count + 1)
    choose(("counting", kind, count, ground) for kind in kinds for count in counts for ground in grounds)
    choose(("colours", kind, tint, ground) for kind in kinds for tint in tints for ground in grounds)
    choose(
        relation_key(a, relation, b, ground)
        for a, b in permutations(kinds, 2)
        for relation in _CANONICAL_RELATIONS
        for ground in grounds
    )
    choose(
        binding_key((a, first), (b, second), ground)
        for a, b in combinations(kinds, 2)
        for first, second in permutations(tints, 2)
        for ground in grounds
    )
    assert set(by_skill) == set(SKILLS)
    return HeldOut(by_skill, frozenset(key for keys in by_skill.values() for key in keys))


def _implied(key: Key) -> set[Key]:
    """Returns keys of simpler skills that every scene with `key` contains too."""
    match key:
        case ("position", str(a), _, str(b), ground):
            return {("two_objects", min(a, b), max(a, b), ground)}
        case ("attribute_binding", str(a), first, str(b), second, ground):
            pair: Key = ("two_objects", min(a, b), max(a, b), ground)
            return {pair, ("colours", a, first, ground), ("colours", b, second, ground)}
    return set()


def _spread(candidates: list[Key], share: float, seed: int) -> tuple[Key, ...]:
    """Picks `share` of the keys by a hash, at least one, but at most that share of the keys with any one element."""
    wanted = max(1, round(share * len(candidates)))
    known = Counter(element for key in candidates for element in _elements(key))
    taken: Counter[object] = Counter()
    chosen: list[Key] = []
    for key in sorted(candidates, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest()):
        elements = _elements(key)
        if len(chosen) < wanted and all(taken[one] < math.ceil(share * known[one]) for one in elements):
            chosen.append(key)
            taken.update(elements)
    return tuple(chosen)


def _elements(key: Key) -> set[object]:
    """Returns the kinds, tints, ... of a key; backgrounds are distinguished from tints of the same name.

    Of a relation also its two kinds on the background: if all of their relations were held out, no training scene could
    have both, and no held-out scene of another skill either.
    """
    pair = {frozenset((key[1], key[3], ("background", key[-1])))} if key[0] == "position" else set[object]()
    return {*key[1:-1], ("background", key[-1]), *pair}
