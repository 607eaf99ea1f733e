"""The source `emoji`: single Twemoji images with their names and categories.

    transparent PNG of 72 x 72 px  ->  square on white  ->  generation: its name as the prompt
                                                        ->  understanding: what is it, which of these, which category

Whole concept groups are held out (see `emoji_concepts`), except those of the sprites that scenes are made of.
"""

from functools import cached_property
from random import Random
from typing import Any

from PIL import UnidentifiedImageError
from pydantic import Field, NonNegativeInt

from data_prep.demo.emoji_concepts import Emoji, groups_of_sprites, is_held_out, read_emoji
from data_prep.demo.questions import Question
from data_prep.demo.source import SPLITS
from data_prep.demo.sprites import encode_png
from data_prep.demo.twemoji import ATTRIBUTION, LICENCE, blend, load_premultiplied, png_folder
from data_prep.inputs.skipped_input import SkippedInput
from ufork.config import Config
from ufork.data.shards.sample import Sample
from ufork.vocabulary import Task

_VERSION = 1
"""Increased whenever the samples made from the same config and seed change."""

CATEGORIES = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Animals & Nature": "nature",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}
"""Unicode's categories, with the word used for each in answers."""

_WHITE = (255, 255, 255)


class EmojiConfig(Config):
    """Settings of the source `emoji`."""

    num_train_per_task: NonNegativeInt | None = None
    """Largest number of training images per task, chosen by the seed; null for all."""
    num_heldout_per_task: NonNegativeInt | None = None
    """Largest number of held-out images per task, chosen by the seed; null for all."""
    held_out_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the concept groups that are held out of training."""
    skin_tones: bool = True
    """Whether variants with the five skin tones are included; they are half of all images."""
    image_px: int = Field(default=64, ge=1, le=4096)
    """Height and width of the images."""
    num_name_choices: int = Field(default=3, ge=2, le=10)
    """Number of names to choose from in the question "which is this"; wrong ones have the same category and split."""


class EmojiSource:
    """Makes the samples of the source `emoji`."""

    name = "emoji"
    licence = LICENCE
    attribution = ATTRIBUTION

    def __init__(self, config: EmojiConfig, seed: int) -> None:
        """Names and images are loaded on first use."""
        self._config = config
        self._seed = seed

    @cached_property
    def _listing(self) -> tuple[dict[str, list[Emoji]], int]:
        """Emoji of each split, shuffled by the seed, and the number of images without a name."""
        emoji, nameless = read_emoji(path.stem for path in png_folder().glob("*.png"))
        trained, share = groups_of_sprites(emoji), self._config.held_out_share
        by_split: dict[str, list[Emoji]] = {split: [] for split in SPLITS}
        for one in emoji:
            if self._config.skin_tones or not one.has_skin_tone:
                held_out = is_held_out(one.group, share=share, seed=self._seed, always_trained=trained)
                by_split["heldout" if held_out else "train"].append(one)
        for split, ones in by_split.items():
            Random(f"{self._seed}/{split}").shuffle(ones)
            limit = self._config.num_train_per_task if split == "train" else self._config.num_heldout_per_task
            del ones[len(ones) if limit is None else limit :]
        return by_split, nameless

    @cached_property
    def _names(self) -> dict[tuple[str, str], list[Emoji]]:
        """Emoji by split and category."""
        names: dict[tuple[str, str], list[Emoji]] = {}
        for split, ones in self._listing[0].items():
            for one in ones:
                names.setdefault((split, one.category), []).append(one)
        return names

    def emoji_of(self, split: str) -> list[Emoji]:
        """Returns the emoji of a split, in the order of the sample numbers."""
        return self._listing[0][split]

    def num_samples(self, split: str, task: Task) -> int:
        """Returns the number of images in the split; each gives one sample per task."""
        return len(self.emoji_of(split))

    def sample(self, split: str, task: Task, number: int) -> Sample:
        """Makes the sample of emoji `number` for a task.

        Raises:
            SkippedInput: the image cannot be decoded.
        """
        emoji = self.emoji_of(split)[number]
        truth: dict[str, Any] = {
            "skill": "emoji",
            "hexcode": emoji.hexcode,
            "name": emoji.name,
            "category": CATEGORIES[emoji.category],
            "group": emoji.group,
        }
        turns: tuple[tuple[str, str], ...] = ()
        if task == Task.UNDERSTANDING:
            questions = self._ask(emoji, split, Random(f"{self._seed}/{split}/{emoji.hexcode}"))
            turns = tuple((question.text, question.answer) for question in questions)
            truth["questions"] = [question.record() for question in questions]
        return Sample(
            id=f"{self.name}-{split}-{task}-{emoji.hexcode}",
            task=task,
            source=self.name,
            licence=self.licence,
            image=self._image(emoji),
            image_format="png",
            prompt=emoji.name if task == Task.GENERATION else "",
            turns=turns,
            truth=truth,
        )

    def _image(self, emoji: Emoji) -> bytes:
        try:
            pixels = load_premultiplied(png_folder() / f"{emoji.hexcode}.png", self._config.image_px)
        except (OSError, UnidentifiedImageError):
            raise SkippedInput("undecodable image") from None
        return encode_png(blend(pixels, _WHITE))

    def _ask(self, emoji: Emoji, split: str, rng: Random) -> list[Question]:
        """Returns the three questions about an emoji; in the held-out split the first one has choices."""
        wrong = sorted({one.name for one in self._names[split, emoji.category] if one.group != emoji.group})
        choices = [emoji.name, *rng.sample(wrong, min(len(wrong), self._config.num_name_choices - 1))]
        rng.shuffle(choices)
        categories = tuple(CATEGORIES.values())
        category_text = f"what is this about: {_either(list(categories))}?"
        questions = [
            Question(
                skill="emoji_name",
                template="which is this: {names}?",
                text=f"which is this: {_either(choices)}?",
                choices=tuple(choices),
                answer=emoji.name,
            ),
            Question(
                skill="emoji_category",
                template=category_text,
                text=category_text,
                choices=categories,
                answer=CATEGORIES[emoji.category],
            ),
        ]
        rng.shuffle(questions)
        caption = Question(
            skill="emoji_caption", template="what is this?", text="what is this?", choices=(), answer=emoji.name
        )
        questions.insert(2 if split == "heldout" else rng.randrange(3), caption)
        return questions

    def skipped(self, split: str) -> dict[str, int]:
        """Returns the number of images without a name, counted in the training split."""
        nameless = self._listing[1]
        return {"no name": nameless} if nameless and split == "train" else {}

    def recipe(self, split: str) -> dict[str, Any]:
        """Returns the config without the size of the other split, the seed, and the version of the code."""
        values = self._config.model_dump(mode="json")
        del values["num_heldout_per_task" if split == "train" else "num_train_per_task"]
        return {"source": self.name, "split": split, "version": _VERSION, "seed": self._seed, **values}

    def details(self) -> dict[str, Any]:
        """Returns the categories and the size of the images in px."""
        return {"categories": list(CATEGORIES.values()), "canvas_px": self._config.image_px}


def _either(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
