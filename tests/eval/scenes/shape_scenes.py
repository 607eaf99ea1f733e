"""Small scenes of plain shapes with the layout of a real source: what the tests of evaluation need, without any art."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ufork.data.shards.sample import Sample
from ufork.data.shards.writer import ShardWriter, finish_source, start_source
from ufork.eval.scenes.config import DetectorConfig
from ufork.eval.scenes.skills import SKILLS
from ufork.vocabulary import Task

KINDS = ("cross", "disc", "square")
NATURAL = {"cross": (200, 120, 20), "disc": (90, 40, 130), "square": (90, 70, 50)}
TINTS = {"red": (230, 40, 40), "green": (40, 180, 60), "blue": (40, 80, 230)}
BACKGROUNDS = {"white": (255, 255, 255), "pink": (255, 200, 210)}
SPRITE_PX = 24
CANVAS_PX = 64
STEP_PX = 8
NUMBERS = ("one", "two", "three")
SMALL_DETECTOR = DetectorConfig(max_images=400, steps=60, batch_images=32, width=32, learning_rate=1e-2)


def shape(kind):
    y, x = np.mgrid[:SPRITE_PX, :SPRITE_PX] - (SPRITE_PX - 1) / 2
    if kind == "disc":
        return x**2 + y**2 < 11**2
    if kind == "cross":
        return (abs(x) < 4) | (abs(y) < 4)
    return (abs(x) < 11) & (abs(y) < 11)


def render(truth):
    """The picture [64, 64, 3] of a truth."""
    image = np.empty((CANVAS_PX, CANVAS_PX, 3), np.uint8)
    image[:] = BACKGROUNDS[truth["background"]]
    for item in truth["objects"]:
        colour = NATURAL[item["kind"]] if item["colour"] == "natural" else TINTS[item["colour"]]
        image[item["y"] : item["y"] + SPRITE_PX, item["x"] : item["x"] + SPRITE_PX][shape(item["kind"])] = colour
    return image


def png(image):
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def random_corners(rng, number):
    """Top left corners that leave every sprite its room."""
    while True:
        found = []
        for x, y in rng.integers(0, (CANVAS_PX - SPRITE_PX) // STEP_PX + 1, (40, 2)) * STEP_PX:
            if len(found) < number and all(max(abs(x - a), abs(y - b)) >= SPRITE_PX for a, b in found):
                found.append((int(x), int(y)))
        if len(found) == number:
            return found


def make_truth(rng, skill):
    """A scene of `skill` with its prompt and one question."""
    first, second = (str(kind) for kind in rng.choice(KINDS, 2, replace=False))
    red, blue = (str(tint) for tint in rng.choice(list(TINTS), 2, replace=False))
    count = int(rng.integers(2, 4)) if skill == "counting" else 1
    both = skill in ("two_objects", "position", "attribute_binding")
    colours = {"colours": [red], "attribute_binding": [red, blue]}.get(skill, [None, None])
    groups = [{"kind": first, "colour": colours[0], "count": count}]
    if both:
        groups.append({"kind": second, "colour": colours[1], "count": 1})
    wanted = [group for group in groups for _ in range(group["count"])]
    corners = random_corners(rng, len(wanted))
    relation = None
    if skill == "position":
        relation = "left of"
        y = int(rng.integers(0, 5)) * STEP_PX
        corners = [(0, y), (32, y)]
    objects = [
        {"kind": group["kind"], "colour": group["colour"] or "natural", "x": x, "y": y}
        for group, (x, y) in zip(wanted, corners, strict=True)
    ]
    background = str(rng.choice(list(BACKGROUNDS)))
    truth = {
        "skill": skill,
        "background": background,
        "objects": objects,
        "requirements": {"groups": groups, "relation": relation, "background": None},
    }
    names = [" ".join(filter(None, (NUMBERS[g["count"] - 1], g["colour"], g["kind"]))) for g in groups]
    return truth, f" {relation or 'and'} ".join(names)


def make_sample(rng, skill, task, number):
    truth, prompt = make_truth(rng, skill)
    turn = ("what is the background?", truth["background"])
    truth["questions"] = [{"skill": skill, "template": turn[0], "choices": sorted(BACKGROUNDS)}]
    understanding = task == Task.UNDERSTANDING
    return Sample(
        id=f"scenes-test-{task}-{number:09d}",
        task=task,
        source="scenes",
        licence="CC0-1.0",
        image=png(render(truth)),
        image_format="png",
        prompt="" if understanding else prompt,
        turns=(turn,) if understanding else (),
        truth=truth,
    )


def make_samples(number, *, seed, task=Task.GENERATION):
    """Samples of the six skills in turn."""
    rng = np.random.default_rng(seed)
    return [make_sample(rng, SKILLS[index % len(SKILLS)], task, index) for index in range(number)]


def write_source(folder: Path, number, *, seed, split):
    """A finished source folder with `number` samples of each task."""
    start_source(folder)
    entries = []
    for task in Task:
        with ShardWriter(folder, source="scenes", split=split, task=task, shard_samples=100) as writer:
            for sample in make_samples(number, seed=seed, task=task):
                writer.write(sample)
        entries += writer.entries
    return finish_source(
        folder,
        source="scenes",
        split=split,
        licence="CC0-1.0",
        attribution="",
        recipe=f"{number} {seed}",
        entries=entries,
        skipped={},
        details={},
    )
