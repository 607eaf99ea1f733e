"""The source `scenes`: compositions of sprites with exact ground truth.

    seed, split, task, number  ->  random scene  ->  pixels, and a prompt or dialogue turns by task  ->  Sample

Every sample has its own random generator, so any process can make any sample.
"""

from random import Random
from typing import Any

from data_prep.demo.captions import describe
from data_prep.demo.questions import ask
from data_prep.demo.scene_grammar import RELATIONS, SKILLS, Scene, ScenesConfig
from data_prep.demo.scene_sampling import SceneSampler
from data_prep.demo.splits import HeldOut
from data_prep.demo.sprites import BACKGROUNDS, NATURAL, TINTS, SpriteSheet, encode_png
from data_prep.demo.twemoji import ATTRIBUTION, LICENCE
from ufork.data.shards.sample import Sample
from ufork.vocabulary import Task

_VERSION = 2
"""Increased whenever the samples made from the same config and seed change."""


class SceneSource:
    """Makes the samples of the source `scenes`."""

    name = "scenes"
    licence = LICENCE
    attribution = ATTRIBUTION

    def __init__(self, config: ScenesConfig, seed: int) -> None:
        """Chooses the held-out combinations; no image is loaded yet."""
        self._config = config
        self._seed = seed
        self._sampler = SceneSampler(config, seed)
        self._sheet = SpriteSheet(config)

    @property
    def held_out(self) -> HeldOut:
        """Combinations that never occur in training."""
        return self._sampler.held_out

    def num_samples(self, split: str, task: Task) -> int:
        """Returns the configured number of scenes."""
        return self._config.num_train_per_task if split == "train" else self._config.num_heldout_per_task

    def sample(self, split: str, task: Task, number: int) -> Sample:
        """Makes scene `number`. Held-out scenes cycle through the skills and through the combinations of each."""
        rng = Random(f"{self._seed}/{split}/{task}/{number}")
        # Answers must not be guessable from the background; most prompts, such as "a dog", may imply white.
        even = task == Task.UNDERSTANDING
        if split == "train":
            scene = self._sampler.train(rng, even_backgrounds=even)
        else:
            keys = self.held_out.by_skill[SKILLS[number % len(SKILLS)]]
            scene = self._sampler.heldout(rng, keys[number // len(SKILLS) % len(keys)], even_backgrounds=even)
        truth = _truth(scene)
        prompt = ""
        turns: tuple[tuple[str, str], ...] = ()
        if task == Task.GENERATION:
            prompt = describe(scene)
        else:
            questions = ask(scene, rng, self._config, own_skill_first=split != "train")
            turns = tuple((question.text, question.answer) for question in questions)
            truth["questions"] = [question.record() for question in questions]
        return Sample(
            id=f"{self.name}-{split}-{task}-{number:09d}",
            task=task,
            source=self.name,
            licence=self.licence,
            image=encode_png(self._sheet.paint(scene.background, scene.objects)),
            image_format="png",
            prompt=prompt,
            turns=turns,
            truth=truth,
        )

    def skipped(self, split: str) -> dict[str, int]:
        """Returns nothing: scenes are made from no input that could be unusable."""
        return {}

    def recipe(self, split: str) -> dict[str, Any]:
        """Returns the config without the size of the other split, the seed, and the version of the code."""
        values = self._config.model_dump(mode="json")
        del values["num_heldout_per_task" if split == "train" else "num_train_per_task"]
        return {"source": self.name, "split": split, "version": _VERSION, "seed": self._seed, **values}

    def details(self) -> dict[str, Any]:
        """Returns the vocabulary of the scenes, colours as RGB, and their geometry in px."""
        config = self._config
        return {
            "skills": list(SKILLS),
            "kinds": list(config.kind_names),
            "natural": NATURAL,
            "colours": {name: list(TINTS[name]) for name in config.tints},
            "backgrounds": {name: list(BACKGROUNDS[name]) for name in config.backgrounds},
            "relations": list(RELATIONS),
            "max_count": config.max_count,
            "canvas_px": config.canvas_px,
            "sprite_px": config.sprite_px,
            "position_step_px": config.position_step_px,
        }


def _truth(scene: Scene) -> dict[str, Any]:
    return {
        "skill": scene.skill,
        "background": scene.background,
        "objects": [vars(placed) for placed in scene.objects],
        "requirements": scene.requirements(),
    }
