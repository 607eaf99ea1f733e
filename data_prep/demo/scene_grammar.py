"""What can be said of a scene, and what a scene is.

A scene is a background and one or two *groups* (so many things of one kind, all tinted alike or natural), with an
optional relation between the two. The six skills of GenEval (arXiv 2310.11513) are restrictions of that:

    single_object      one natural thing                     "a dog", "a dog on a blue background"
    two_objects        two natural things                    "a dog and a cat"
    counting           one group of two or more              "three apples"
    colours            one tinted thing; or a background     "a red dog"
    position           two natural things, related           "a dog left of a cat"
    attribute_binding  two things of different tints         "a red dog and a blue cat"

`COMPOSITION` is anything that the grammar allows ("two red apples left of a dog"): trained on, and no skill of its own.
"""

from dataclasses import dataclass

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from data_prep.demo.sprites import NATURAL, WHITE, Placed, SpriteConfig

SKILLS = ("single_object", "two_objects", "counting", "colours", "position", "attribute_binding")
COMPOSITION = "composition"

RELATIONS = ("left of", "right of", "above", "below")
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

COUNT_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}


class ScenesConfig(SpriteConfig):
    """Which scenes are made, and how many."""

    num_train_per_task: NonNegativeInt = 20_000
    """Scenes drawn for the questions, and as many others for the drawing prompts."""
    num_heldout_per_task: NonNegativeInt = 600
    """Likewise, of combinations that training never shows; the six skills in turn."""
    max_count: int = Field(default=4, ge=2, le=len(COUNT_WORDS))
    """Most things in one scene."""
    held_out_share: float = Field(default=0.12, gt=0, lt=0.5)
    """Share of the combinations of each type that training never shows."""
    background_share: float = Field(default=0.25, ge=0, le=1)
    """Share of drawing prompts that name a background, where the skill leaves that open. Scenes of questions have all
    backgrounds equally often: there the answer must not be guessable."""
    composition_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of training scenes that are free compositions; the six skills share the rest evenly."""
    num_turns: PositiveInt = 4
    """Questions asked of one image."""

    @model_validator(mode="after")
    def _all_fit_on_the_canvas(self) -> "ScenesConfig":
        # With coarse steps fewer fit side by side than the canvas is wide.
        step_px = -(-self.sprite_px // self.position_step_px) * self.position_step_px
        room = len(range(0, self.cells_px[-1] + 1, step_px)) ** 2
        if self.max_count > room:
            raise ValueError(f"max_count={self.max_count}: only {room} sprites of {self.sprite_px} px fit the canvas")
        return self


@dataclass(frozen=True)
class Group:
    """So many things of one kind and colour."""

    kind: str
    colour: str
    """A tint or NATURAL."""
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A scene with all that is true of it."""

    skill: str
    background: str
    groups: tuple[Group, ...]
    relation: str | None = None
    """Of the first group to the second, where the prompt names it."""
    objects: tuple[Placed, ...]
    """Group by group."""

    @property
    def named_background(self) -> str | None:
        """The background as the prompt names it: white goes without saying."""
        return None if self.background == WHITE else self.background

    def requirements(self) -> dict[str, object]:
        """What a drawing for this scene's prompt must show; colours and backgrounds that are not named are None."""
        return {
            "groups": [
                {
                    "kind": group.kind,
                    "colour": None if group.colour == NATURAL else group.colour,
                    "count": group.count,
                }
                for group in self.groups
            ],
            "relation": self.relation,
            "background": self.named_background,
        }


def relations_between(first: Placed, second: Placed, sprite_px: int) -> tuple[str, ...]:
    """How `first` stands to `second`: the relations along each axis on which they do not overlap, none to two."""
    found = []
    if abs(second.x - first.x) >= sprite_px:
        found.append("left of" if first.x < second.x else "right of")
    if abs(second.y - first.y) >= sprite_px:
        found.append("above" if first.y < second.y else "below")
    return tuple(found)
