"""Results of trials that nobody trained."""

from ufork.analysis.ablation.trial_result import Cost, Curve, Score, TrialResult
from ufork.vocabulary import Task

MODEL = {"hidden_size": 32, "intermediate_size": 48, "tasks": ["understanding", "generation"]}


def layers(trunk, understanding, generation, **changes):
    """Model section of an arm's recipe."""
    sizes = dict(trunk_layers=trunk, understanding_layers=understanding, generation_layers=generation)
    return {**MODEL, **sizes, **changes}


def trial(arm="shared", seed=0, *, model=None, answers=0.8, drawings=None, loss=None):
    """The result of a trial; scores that are None are missing."""
    model = model or layers(4, 0, 0)
    values = {
        "scenes/answers": (Task.UNDERSTANDING, "0 chance, 1 perfect", True, answers),
        "scenes/drawings": (Task.GENERATION, "0 chance, 1 perfect", True, drawings),
        "heldout/generation": (Task.GENERATION, "nats per image code", False, loss),
    }
    scores = [
        Score(name=name, task=task, measure=measure, higher_is_better=higher, value=value, groups={"single": value})
        for name, (task, measure, higher, value) in values.items()
        if value is not None
    ]
    tasks = [Task(task) for task in model["tasks"]]
    return TrialResult(
        suite="toy",
        arm=arm,
        seed=seed,
        values={"model.trunk_layers": model["trunk_layers"]},
        recipe={"run": {"name": arm, "seed": seed}, "model": model, "train": {"steps": 20}},
        cost=Cost(
            total_parameters=1000,
            active_parameters=dict.fromkeys(tasks, 900),
            training_flops=dict.fromkeys(tasks, 10**13),
        ),
        steps=20,
        scores=scores,
        curves={task: Curve(steps=[10, 20], losses=[3.0 - seed / 10, 2.0]) for task in tasks},
        seconds={"train": 12.5 + seed, "evaluate": 3.0},
        commit="0123456789ab",
        machine="2 cores",
        versions={"torch": "2.13.0"},
    )


def arm(name, *answers, **others):
    """The results of an arm with seeds 0, 1, ..."""
    return [trial(name, seed, answers=value, **others) for seed, value in enumerate(answers)]


def measured(arm, seed, *, conflict=True):
    """A trial with two layers; the second measurement is later, and higher by 0.2."""
    alignment, cosines = [], []
    for number, step in enumerate((100, 200)):
        up = seed / 10 + number / 5
        alignment.append(
            {
                "step": step,
                **{
                    f"{name}/generation/layers.{layer}": layer + up
                    for name in ("cka", "mutual_neighbours")
                    for layer in range(3)
                },
                **{
                    f"{name}_of_permuted/generation/layers.{layer}": 0.01
                    for name in ("cka", "mutual_neighbours")
                    for layer in range(3)
                },
            }
        )
        cosines.append({"step": step, "cosine/all": 9, "cosine/layers.0": up, "cosine/layers.*.mlp.up.weight": 9})
    probes = {"alignment": alignment, **({"gradient_conflict": cosines} if conflict else {})}
    return trial(arm, seed).model_copy(update={"probes": probes})
