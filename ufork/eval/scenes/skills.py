"""Whether a picture shows what its prompt asked for, and what a score in that is worth.

    requirements of a prompt + Detection of a picture -> satisfies: yes or no
    all prompts of a skill, their drawings, their real images -> DrawingScore: share, chance, ceiling

The rules are GenEval's (arXiv 2310.11513): objects asked for must be there, more of them do no harm unless a number was
asked for; colours must be the objects' own; a relation must hold between all pairs of the objects matched. Pure Python.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from typing import Any

SKILLS = ("single_object", "two_objects", "counting", "colours", "position", "attribute_binding")
"""GenEval's six, in its order; means are taken over these."""

RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Direction in which the first group lies, seen from the second; x grows to the right and y downwards."""

RELATION_SLACK_PX = 4.0
"""Offsets up to this count as none (GenEval: a tenth of both objects' extent)."""

RELATION_COSINE = 0.5
"""A relation holds within 60 degrees of its direction, so that a diagonal neighbour is left as well as above."""


@dataclass(frozen=True, kw_only=True)
class FoundObject:
    """One object in a picture: (x, y) is its top left corner in pixels."""

    kind: str
    colour: str
    x: int
    y: int
    confidence: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Detection:
    """All that was found in a picture, the most confident object first."""

    background: str
    objects: tuple[FoundObject, ...]

    @classmethod
    def from_truth(cls, truth: Mapping[str, Any]) -> "Detection":
        """What a perfect detector finds in a sample's image."""
        objects = tuple(
            FoundObject(**{key: item[key] for key in ("kind", "colour", "x", "y")}) for item in truth["objects"]
        )
        return cls(background=truth["background"], objects=objects)

    def same_as(self, other: "Detection") -> bool:
        """Both name the same background and the same objects at the same places, in whatever order."""
        return self.background == other.background and self._places() == other._places()

    def describe(self) -> str:
        """A line for people, such as `red dog, cat on blue`."""
        names = [item.kind if item.colour == "natural" else f"{item.colour} {item.kind}" for item in self.objects]
        return f"{', '.join(names) or 'nothing'} on {self.background}"

    def _places(self) -> set[tuple[str, str, int, int]]:
        return {(item.kind, item.colour, item.x, item.y) for item in self.objects}


@dataclass(frozen=True, kw_only=True)
class DrawingScore:
    """Drawings of one skill beside what chance and a perfect painter would get; all shares lie in [0, 1]."""

    num_prompts: int
    satisfied: float
    """Share of drawings that show what their prompt asked for."""
    chance: float
    """Share for a painter of real images who does not read the prompt: the image of another sample of the skill, each
    with equal probability. Another sample may have the same prompt; such luck is part of chance."""
    ceiling: float
    """Share of real images found to satisfy their own prompt: what the detector's mistakes leave attainable."""

    @property
    def normalised(self) -> float:
        """0 at chance, 1 at the ceiling; 0 where the two do not differ and nothing can be told."""
        room = self.ceiling - self.chance
        return (self.satisfied - self.chance) / room if room > 0 else 0.0

    @property
    def standard_error(self) -> float:
        """Of `satisfied`, by the binomial distribution."""
        return sqrt(self.satisfied * (1 - self.satisfied) / self.num_prompts)


def satisfies(requirements: Mapping[str, Any], detection: Detection) -> bool:
    """Whether a picture shows what its prompt asked for.

    Args:
        requirements: `groups` of {kind, colour or None, count}, `relation` of the first to the second or None,
            `background` or None, as in a sample's truth. A count above 1 must be met exactly.
        detection: what was found in the picture.
    """
    if requirements["background"] not in (None, detection.background):
        return False
    matches = [_matching(group, detection) for group in requirements["groups"]]
    if not all(
        _enough(group["count"], len(match)) for group, match in zip(requirements["groups"], matches, strict=True)
    ):
        return False
    relation = requirements["relation"]
    if relation is None:
        return True
    counts = [group["count"] for group in requirements["groups"]]
    firsts, seconds = (match[:count] for match, count in zip(matches, counts, strict=True))
    return all(holds(relation, first, second) for first in firsts for second in seconds)


def holds(relation: str, first: FoundObject, second: FoundObject) -> bool:
    """Whether `first` lies `relation` of `second` (a key of RELATIONS)."""
    x, y = _beyond_slack(first.x - second.x), _beyond_slack(first.y - second.y)
    distance = hypot(x, y)
    along_x, along_y = RELATIONS[relation]
    return distance > 0 and (x * along_x + y * along_y) / distance > RELATION_COSINE


def score_drawings(
    requirements: Sequence[Mapping[str, Any]], *, drawn: Sequence[Detection], real: Sequence[Detection]
) -> DrawingScore:
    """Scores the drawings of one skill; the three sequences are aligned and not empty."""
    num_prompts = len(requirements)
    own = [satisfies(asked, found) for asked, found in zip(requirements, real, strict=True)]
    hits = sum(satisfies(asked, found) for asked, found in zip(requirements, drawn, strict=True))
    others = sum(satisfies(asked, found) for asked in requirements for found in real) - sum(own)
    num_others = num_prompts * (num_prompts - 1)
    return DrawingScore(
        num_prompts=num_prompts,
        satisfied=hits / num_prompts,
        chance=others / num_others if num_others else 0.0,
        ceiling=sum(own) / num_prompts,
    )


def _matching(group: Mapping[str, Any], detection: Detection) -> list[FoundObject]:
    return [item for item in detection.objects if item.kind == group["kind"] and group["colour"] in (None, item.colour)]


def _enough(count: int, found: int) -> bool:
    return found == count if count > 1 else found >= 1


def _beyond_slack(offset: float) -> float:
    if abs(offset) <= RELATION_SLACK_PX:
        return 0.0
    return offset - RELATION_SLACK_PX if offset > 0 else offset + RELATION_SLACK_PX
