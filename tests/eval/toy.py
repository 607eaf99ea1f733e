"""Models and a benchmark whose results are known beforehand."""

from collections import defaultdict

import numpy as np

from tests.eval.scenes import shape_scenes
from ufork.data.shards.source import ShardSource
from ufork.errors import SampleError
from ufork.eval.benchmark import BenchmarkReport, Case, Prompt, Question
from ufork.eval.record import CaseScore, GroupScore, ScoreTable
from ufork.infer.model import TargetLoss
from ufork.vision.images import decode_image
from ufork.vocabulary import Task


def every(folder, task):
    source = ShardSource(folder, task)
    return [source[number] for number in range(len(source))]


def picture_of(sample):
    return decode_image(sample.image, size_px=shape_scenes.CANVAS_PX, purpose=Task.GENERATION)


class Guessing:
    """Answers white, draws black, and has a loss of 2 nats per target; remembers what it was asked."""

    image_px = shape_scenes.CANVAS_PX

    def __init__(self, tasks=tuple(Task)):
        self.tasks = tasks
        self.drawn, self.answered, self.losses, self.seeds = [], [], [], {}

    def draw(self, prompts, config, *, seeds):
        self.drawn.append(list(prompts))
        self.seeds |= dict(zip(prompts, seeds, strict=True))
        return np.zeros((len(prompts), self.image_px, self.image_px, 3), np.uint8)

    def answer(self, images, questions, config):
        assert images.shape == (len(questions), self.image_px, self.image_px, 3)
        self.answered.append(list(questions))
        return ["white"] * len(questions)

    def loss(self, sample):
        self.losses.append(sample.id)
        if "unusable" in sample.id:
            raise SampleError(f"{sample.id}: unusable")
        return TargetLoss(nats=6.0, num_targets=3)


class Knowing(Guessing):
    """Answers every question rightly and draws the real image of every prompt."""

    def __init__(self, folder):
        super().__init__()
        self.pictures = defaultdict(list)
        for sample in every(folder, Task.GENERATION):
            self.pictures[sample.prompt].append(picture_of(sample))
        self.answers = {
            picture_of(sample).tobytes(): sample.turns[0][1] for sample in every(folder, Task.UNDERSTANDING)
        }

    def draw(self, prompts, config, *, seeds):
        return np.stack([self.pictures[prompt].pop(0) for prompt in prompts])

    def answer(self, images, questions, config):
        return [self.answers[image.tobytes()] for image in images]


class Toy:
    """Asks `number` questions and draws `number` prompts; everything is right."""

    name, title, description, fingerprint = "toy", "Toy", "Nothing much.", "1"

    def __init__(self, number, *, damaged=()):
        self.number, self.damaged = number, damaged
        self.batches = []

    def cases(self, tasks):
        image = shape_scenes.png(np.full((8, 8, 3), 9, np.uint8))
        for number in range(self.number):
            if Task.UNDERSTANDING in tasks:
                data = b"no image" if number in self.damaged else image
                yield Case(
                    id=f"q{number}",
                    group="even" if number % 2 == 0 else "odd",
                    request=Question(image=data, text=f"{number}?"),
                )
            if Task.GENERATION in tasks:
                yield Case(id=f"d{number}", group="all", request=Prompt(text=f"prompt {number}"))

    def score(self, cases, outputs):
        self.batches.append([case.id for case in cases])
        return [CaseScore(group=case.group, task=case.task, right=True, details={"id": case.id}) for case in cases]

    def report(self, scores):
        groups = defaultdict(list)
        for score in scores:
            groups[score.group].append(score)
        table = {name: GroupScore(score=1.0, num_cases=len(group), chance=0.5) for name, group in groups.items()}
        self.reported = [score.details["id"] for score in scores]
        return BenchmarkReport(
            tables=[ScoreTable(task=Task.UNDERSTANDING, title="All", measure="right", groups=table)], figures=[]
        )
