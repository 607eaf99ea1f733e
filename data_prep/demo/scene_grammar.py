"""Defines scenes and the skills that they test.

A scene has a background and one or two *groups*, each a number of objects of one kind and colour, with an optional
relation between the two groups. The six skills are those of GenEval (arXiv 2310.11513):

    single_object      one object of natural colour          "a dog", "a dog on a blue background"
    two_objects        two objects of natural colour         "a dog and a cat"
    counting           one group of two or more              "three apples"
    colours            one tinted object, or a background    "a red dog"
    position           two natural objects with a relation   "a dog left of a cat"
    attribute_binding  two objects of different tints        "a red dog and a blue cat"

`COMPOSITION` is any other scene that the grammar allows ("two red apples left of a dog"). It is trained but not tested.
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
    """Settings of the source `scenes`."""

    num_train_per_task: NonNegativeInt = 20_000
    """Number of training scenes with questions, and of as many others with drawing prompts."""
    num_heldout_per_task: NonNegativeInt = 600
    """Number of held-out scenes per task; they cycle through the six skills and never occur in training."""
    max_count: int = Field(default=4, ge=2, le=len(COUNT_WORDS))
    """Largest number of objects in a scene."""
    held_out_share: float = Field(default=0.12, gt=0, lt=0.5)
    """Share of the combinations of each skill that are held out of training."""
    background_share: float = Field(default=0.25, ge=0, le=1)
    """Share of drawing prompts that name a background, for skills that do not require one. In scenes with questions all
    backgrounds are equally frequent, so that answers cannot be guessed."""
    composition_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of training scenes that are free compositions; the six skills share the rest evenly."""
    num_turns: PositiveInt = 4
    """Number of questions about one image."""

    @model_validator(mode="after")
    def _all_fit_on_the_canvas(self) -> "ScenesConfig":
        # A coarse position step leaves gaps between sprites.
        step_px = -(-self.sprite_px // self.position_step_px) * self.position_step_px
        capacity = len(range(0, self.cells_px[-1] + 1, step_px)) ** 2
        if self.max_count > capacity:
            raise ValueError(
                f"max_count={self.max_count}: only {capacity} sprites of {self.sprite_px} px fit the canvas"
            )
        return self


@dataclass(frozen=True)
class Group:
    """A number of objects of one kind and colour."""

    kind: str
    colour: str
    """A tint or NATURAL."""
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A scene with its complete ground truth."""

    skill: str
    background: str
    groups: tuple[Group, ...]
    relation: str | None = None
    """Relation of the first group to the second, if the prompt names it."""
    objects: tuple[Placed, ...]
    """Objects of the first group, then those of the second."""

    @property
    def named_background(self) -> str | None:
        """The background that the prompt names: None for white."""
        return None if self.background == WHITE else self.background

    def requirements(self) -> dict[str, object]:
        """Returns what a drawing for the prompt must show. Colours and backgrounds that are not named are None."""
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
    """Returns the relations of `first` to `second`: one for each axis on which they do not overlap, so none to two."""
    found = []
    if abs(second.x - first.x) >= sprite_px:
        found.append("left of" if first.x < second.x else "right of")
    if abs(second.y - first.y) >= sprite_px:
        found.append("above" if first.y < second.y else "below")
    return tuple(found)
