"""Rules that decide whether a picture shows what its prompt asked for, and the score of a skill.

    requirements of a prompt + Detection of a picture -> satisfies: yes or no
    all prompts of a skill, detections in their drawings and real images -> GroupScore: share, chance, ceiling

The rules are GenEval's (arXiv 2310.11513): requested objects must be present, further ones do no harm unless a number
was requested; colours must be the objects' own; a relation must hold between all pairs of the matched objects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import hypot, sqrt
from typing import Any

from ufork.eval.record import GroupScore

SKILLS = ("single_object", "two_objects", "counting", "colours", "position", "attribute_binding")
"""GenEval's six skills, in its order."""

RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Direction of the first group as seen from the second; x grows to the right and y downwards."""

RELATION_SLACK_PX = 4.0
"""Offsets up to this count as zero (GenEval: a tenth of both objects' extent)."""

RELATION_COSINE = 0.5
"""A relation holds within 60 degrees of its direction, so a diagonal neighbour is both left and above."""


@dataclass(frozen=True, kw_only=True)
class FoundObject:
    """One object in a picture; (x, y) is its top left corner in pixels."""

    kind: str
    colour: str
    x: int
    y: int
    confidence: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Everything found in a picture, the most confident object first."""

    background: str
    objects: tuple[FoundObject, ...]

    @classmethod
    def from_truth(cls, truth: Mapping[str, Any]) -> "Detection":
        """Returns what a perfect detector finds in the image of a sample with this truth."""
        objects = tuple(
            FoundObject(**{key: item[key] for key in ("kind", "colour", "x", "y")}) for item in truth["objects"]
        )
        return cls(background=truth["background"], objects=objects)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Detection":
        """Reads what `to_dict` returned."""
        return cls(background=values["background"], objects=tuple(FoundObject(**item) for item in values["objects"]))

    def to_dict(self) -> dict[str, Any]:
        """Returns the detection as JSON values."""
        return asdict(self)

    def same_as(self, other: "Detection") -> bool:
        """Whether both have the same background and the same objects at the same positions, in any order."""
        return self.background == other.background and self._positions() == other._positions()

    def describe(self) -> str:
        """Returns a line for readers, such as `red dog, cat on blue`."""
        names = [item.kind if item.colour == "natural" else f"{item.colour} {item.kind}" for item in self.objects]
        return f"{', '.join(names) or 'nothing'} on {self.background}"

    def _positions(self) -> set[tuple[str, str, int, int]]:
        return {(item.kind, item.colour, item.x, item.y) for item in self.objects}


def satisfies(requirements: Mapping[str, Any], detection: Detection) -> bool:
    """Whether a picture shows what its prompt asked for.

    Args:
        requirements: `groups` of {kind, colour or None, count}, `relation` of the first to the second or None,
            `background` or None, as in a sample's truth. A count above 1 must be exact.
        detection: objects and background found in the picture.
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
) -> GroupScore:
    """Scores the drawings of one skill; the three sequences are aligned and not empty.

    The score is the share of drawings that satisfy their prompt. Chance is the share that a painter of real images gets
    who does not read the prompt: the real image of another sample of the skill, each with equal probability (another
    sample may have the same prompt). The ceiling is the share of real images that the detector finds to satisfy their
    own prompt. The error is binomial.
    """
    num_prompts = len(requirements)
    own = [satisfies(asked, found) for asked, found in zip(requirements, real, strict=True)]
    hits = sum(satisfies(asked, found) for asked, found in zip(requirements, drawn, strict=True))
    others = sum(satisfies(asked, found) for asked in requirements for found in real) - sum(own)
    num_others = num_prompts * (num_prompts - 1)
    share = hits / num_prompts
    return GroupScore(
        score=share,
        num_cases=num_prompts,
        chance=others / num_others if num_others else 0.0,
        ceiling=sum(own) / num_prompts,
        standard_error=sqrt(share * (1 - share) / num_prompts),
    )


def _matching(group: Mapping[str, Any], detection: Detection) -> list[FoundObject]:
    return [item for item in detection.objects if item.kind == group["kind"] and group["colour"] in (None, item.colour)]


def _enough(count: int, found: int) -> bool:
    return found == count if count > 1 else found >= 1


def _beyond_slack(offset: float) -> float:
    if abs(offset) <= RELATION_SLACK_PX:
        return 0.0
    return offset - RELATION_SLACK_PX if offset > 0 else offset + RELATION_SLACK_PX
