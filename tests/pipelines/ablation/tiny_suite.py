"""A suite of tiny models whose data needs no preparation."""

from pathlib import Path

import yaml

from pipelines.ablation.shared_data import made_for
from pipelines.ablation.suite import read_suite
from tests.tiny import write_codes_source
from tests.tiny_run import RECIPE, make_run

ARMS = {
    "shared": {},
    "y": {"model.trunk_layers": 1, "model.understanding_layers": 1, "model.generation_layers": 1},
}
VALUES = {"model.trunk_layers": 2, "model.understanding_layers": 0, "model.generation_layers": 0}


def suite_file(folder: Path, **changes) -> Path:
    """Writes folder/tiny.yaml, a suite of two arms and two seeds, and the recipe that it starts from."""
    recipe = {
        **RECIPE,
        "run": {"name": "base", "folder": str(folder / "runs")},
        "prepare": {"scenes": None, "emoji": None},
        "phases": {"joint": {}},
        "evaluate": {"heldout": {"folders": ["codes/heldout"], "samples_per_source": 4}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    suite = {
        "name": "tiny",
        "recipe": "recipe.yaml",
        "values": VALUES,
        "arms": ARMS,
        "seeds": [0, 1],
        "baselines": [name for name in changes.get("arms", ARMS) if name == "shared"],
        **changes,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(suite, sort_keys=False))
    return path


def prepared_suite_file(folder: Path, **changes) -> Path:
    """The same, with data and tokenizers in place."""
    path = suite_file(folder, **changes)
    suite = read_suite(path)
    suite.folder.mkdir(parents=True)
    _, run = make_run(suite.folder, "data")
    (run.path.parent / "data.yaml").unlink()
    write_codes_source(run.codes / "heldout", num_samples=8, seed=1)
    run.prepared.write_text(made_for(suite))
    return path
