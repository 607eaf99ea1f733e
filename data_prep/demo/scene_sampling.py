"""Samples scenes at random: training scenes, and held-out scenes with a given combination.

    skill, or held-out key  ->  draft (groups, relation, background)  ->  placed objects  ->  scene, if its split allows

A draft that does not fit the canvas, the relation or the split is rejected and sampled again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from data_prep.demo.scene_grammar import (
    COMPOSITION,
    OPPOSITES,
    RELATIONS,
    SKILLS,
    Group,
    Scene,
    ScenesConfig,
    relations_between,
)
from data_prep.demo.splits import HeldOut, Key, choose_held_out
from data_prep.demo.sprites import NATURAL, WHITE, Placed
from ufork.errors import ConfigError

_MOST_TRIES = 100_000
"""A scene is found after a few tries; this many mean that the config allows none."""


@dataclass(frozen=True)
class _Draft:
    groups: tuple[Group, ...]
    background: str
    relation: str | None = None


class SceneSampler:
    """Samples scenes of one config. The held-out combinations depend on config and seed alone."""

    def __init__(self, config: ScenesConfig, seed: int) -> None:
        """Chooses the held-out combinations."""
        self.config = config
        self.held_out: HeldOut = choose_held_out(config, seed)
        self._drafts: dict[str, Callable[[Random, Key | None], tuple[tuple[Group, ...], str | None]]] = {
            "single_object": self._single_object,
            "two_objects": self._two_objects,
            "counting": self._counting,
            "colours": self._colours,
            "position": self._position,
            "attribute_binding": self._attribute_binding,
            COMPOSITION: self._composition,
        }

    def train(self, rng: Random, *, even_backgrounds: bool) -> Scene:
        """Samples a scene of any skill without held-out combinations.

        Args:
            rng: random generator to draw from.
            even_backgrounds: makes all backgrounds equally frequent instead of mostly white.

        Raises:
            ConfigError: the config allows none.
        """
        skill = COMPOSITION if rng.random() < self.config.composition_share else rng.choice(SKILLS)
        for _ in range(_MOST_TRIES):
            scene = self._place(rng, skill, self._draft(rng, skill, None, even_backgrounds))
            if scene and not self.held_out.within(scene.background, scene.objects, self.config.sprite_px):
                return scene
        raise self._none_allowed(f"training scene of {skill}")

    def heldout(self, rng: Random, key: Key, *, even_backgrounds: bool) -> Scene:
        """Samples a scene of the skill of `key` whose only held-out combination is `key`.

        Raises:
            ConfigError: the config allows none.
        """
        skill = str(key[0])
        for _ in range(_MOST_TRIES):
            scene = self._place(rng, skill, self._draft(rng, skill, key, even_backgrounds))
            if scene and self.held_out.within(scene.background, scene.objects, self.config.sprite_px) == {key}:
                return scene
        raise self._none_allowed(f"scene whose only held-out combination is {', '.join(map(str, key))}")

    def _none_allowed(self, what: str) -> ConfigError:
        config = self.config
        return ConfigError(
            f"prepare.scenes: found no {what} in {_MOST_TRIES:,} tries; with num_kinds={config.num_kinds},"
            f" max_count={config.max_count} and held_out_share={config.held_out_share:g}, too many combinations are"
            " held out or the picture has too little room. Lower held_out_share or max_count, or raise num_kinds"
        )

    def _draft(self, rng: Random, skill: str, key: Key | None, even_backgrounds: bool) -> _Draft:
        groups, relation = self._drafts[skill](rng, key)
        if key:
            background = str(key[-1])
        elif skill == "single_object":
            background = rng.choice(self.config.backgrounds)
        elif skill == "colours" and groups[0].colour == NATURAL:
            background = rng.choice([name for name in self.config.backgrounds if name != WHITE])
        elif even_backgrounds:
            background = rng.choice(self.config.backgrounds)
        else:
            named = rng.random() < self.config.background_share
            background = rng.choice(self.config.backgrounds[1:]) if named else WHITE
        return _Draft(groups, background, relation)

    # One method per skill: groups and relation, at random or from the elements of a held-out key.

    def _single_object(self, rng: Random, key: Key | None) -> tuple[tuple[Group, ...], str | None]:
        return (Group(str(key[1]) if key else rng.choice(self.config.kind_names), NATURAL),), None

    def _two_objects(self, rng: Random, key: Key | None) -> tuple[tuple[Group, ...], str | None]:
        first, second = rng.sample(key[1:-1] if key else self.config.kind_names, 2)
        return (Group(str(first), NATURAL), Group(str(second), NATURAL)), None

    def _counting(self, rng: Random, key: Key | None) -> tuple[tuple[Group, ...], str | None]:
        kind, count = key[1:-1] if key else (rng.choice(self.config.kind_names), rng.randint(2, self.config.max_count))
        return (Group(str(kind), NATURAL, int(count)),), None

    def _colours(self, rng: Random, key: Key | None) -> tuple[tuple[Group, ...], str | None]:
        kind, tint = key[1:-1] if key else (rng.choice(self.config.kind_names), rng.choice(self.config.tints))
        if key is None and rng.random() < 0.25:
            tint = NATURAL  # then the background has the colour
        return (Group(str(kind), str(tint)),), None

    def _position(self, rng: Random, key: Key | None) -> tuple[tuple[Group, ...], str | None]:
        if key is None:
            first, second = rng.sample(self.config.kind_names, 2)
            return (Group(first, NATURAL), Group(second, NATURAL)), rng.choice(RELATIONS)
        first, relation, second = (str(element) for element in key[1:-1])
        if rng.random() < 0.5:
            first, relation, second = second, OPPOSITES[relation], first
        return (Group(first, NATURAL), Group(second, NATURAL)), relation

    def _attribute_binding(self, rng: Random, key: Key | None) -> tuple[tuple[Group, ...], str | None]:
        if key is None:
            kinds, tints = rng.sample(self.config.kind_names, 2), rng.sample(self.config.tints, 2)
            return (Group(kinds[0], tints[0]), Group(kinds[1], tints[1])), None
        first, second = Group(str(key[1]), str(key[2])), Group(str(key[3]), str(key[4]))
        return ((first, second) if rng.random() < 0.5 else (second, first)), None

    def _composition(self, rng: Random, key: Key | None) -> tuple[tuple[Group, ...], str | None]:
        assert key is None, key
        kinds = rng.sample(self.config.kind_names, rng.randint(1, 2))
        counts = [rng.randint(1, self.config.max_count - len(kinds) + 1)]
        if len(kinds) == 2:
            counts.append(rng.randint(1, self.config.max_count - counts[0]))
        tints = [rng.choice(self.config.tints) if rng.random() < 0.5 else NATURAL for _ in kinds]
        relation = rng.choice(RELATIONS) if len(kinds) == 2 and rng.random() < 0.5 else None
        return tuple(Group(*group) for group in zip(kinds, tints, counts, strict=True)), relation

    def _place(self, rng: Random, skill: str, draft: _Draft) -> Scene | None:
        """Places the objects of a draft at random; None if they do not fit or do not have the relation."""
        positions = self._positions(rng, sum(group.count for group in draft.groups))
        if positions is None:
            return None
        members = [group for group in draft.groups for _ in range(group.count)]
        objects = tuple(
            Placed(group.kind, group.colour, *position) for group, position in zip(members, positions, strict=True)
        )
        if draft.relation and not self._related(objects, draft, exactly=skill == "position"):
            return None
        return Scene(
            skill=skill, background=draft.background, groups=draft.groups, relation=draft.relation, objects=objects
        )

    def _positions(self, rng: Random, count: int) -> list[tuple[int, int]] | None:
        """Picks positions one by one among those that are still free; None if there are too few."""
        size = self.config.sprite_px
        free = [(x, y) for x in self.config.cells_px for y in self.config.cells_px]
        taken: list[tuple[int, int]] = []
        while len(taken) < count:
            if not free:
                return None
            left, top = rng.choice(free)
            taken.append((left, top))
            if len(taken) < count:
                free = [(x, y) for x, y in free if abs(x - left) >= size or abs(y - top) >= size]
        return taken

    def _related(self, objects: tuple[Placed, ...], draft: _Draft, *, exactly: bool) -> bool:
        """Whether each object of the first group has the relation to each of the second; `exactly`: and no other."""
        split = draft.groups[0].count
        for first in objects[:split]:
            for second in objects[split:]:
                found = relations_between(first, second, self.config.sprite_px)
                if draft.relation not in found or (exactly and len(found) > 1):
                    return False
        return True
