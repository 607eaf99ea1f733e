"""`ufork align`: what it writes, that the report shows it, and which arguments it refuses."""

import pytest
from PIL import Image

from pipelines import cli
from tests.infer.test_model import save_trained
from tests.tiny import tiny_config, write_codes_source
from ufork.analysis.alignment_record import PICTURES, TITLES, AlignmentRecord
from ufork.vocabulary import Task

JOINT = tiny_config(separate_first_layers=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with codes, a model of both tasks, and a generation expert."""
    folder = tmp_path_factory.mktemp("run")
    save_trained(folder / "phases/joint/weights", JOINT)
    save_trained(folder / "expert", tiny_config(tasks=(Task.GENERATION,)))
    write_codes_source(folder / "codes/tiny/heldout", num_samples=60)
    return folder


def align(run, *arguments, checkpoints=("phases/joint/weights",), out="alignment"):
    given = [part for name in checkpoints for part in ("--checkpoint", str(run / name))]
    where = ("--data", str(run / "codes/tiny/heldout"), "--out", str(run / out))
    return cli.main(["align", *given, *where, "--device", "cpu", *arguments])


def test_record_pictures_and_report(run, capsys):
    assert align(run, "--pairs", "24", "num_neighbours=5", "num_permutations=3") == 0
    record = AlignmentRecord.load(run / "alignment/alignment.json")
    (model,) = record.models
    assert [curve.task for curve in model.curves] == list(Task)
    for curve in model.curves:
        stages = [layer.stage for layer in curve.layers]
        own = [str(curve.task)]
        assert stages == ["input", *own, *["trunk"] * JOINT.trunk_layers, *own * JOINT.branch_layers(curve.task)]
        assert all(set(layer.scores) == set(TITLES) for layer in curve.layers)
    assert all(Image.open(run / "alignment" / name).format == "PNG" for name in PICTURES.values())
    assert "understanding  debiased CKA" in capsys.readouterr().out
    assert cli.main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Alignment by depth" in page and page.count("data:image/png") >= len(PICTURES)


def test_the_same_seed_gives_the_same_scores_and_several_models_share_the_pairs(run):
    names = ("--name", "Y", "--name", "expert")
    both = ("phases/joint/weights", "expert")
    assert align(run, "--pairs", "24", *names, checkpoints=both, out="both") == 0
    assert align(run, "--pairs", "24", out="alone") == 0
    first, second = AlignmentRecord.load(run / "both/alignment.json").models
    (alone,) = AlignmentRecord.load(run / "alone/alignment.json").models
    assert (first.name, second.name) == ("Y", "expert") and first.curves == alone.curves
    assert [curve.task for curve in second.curves] == [Task.GENERATION]


def test_a_fixed_text_layer_is_that_of_every_comparison(run):
    for layer in ("0", "-1"):
        assert align(run, "--pairs", "24", f"text_layer={layer}", out=f"fixed{layer}") == 0
    assert align(run, "--pairs", "24", out="own") == 0
    first, last, own = (
        AlignmentRecord.load(run / name / "alignment.json").models[0].curves for name in ("fixed0", "fixed-1", "own")
    )
    for curve, of_last, of_own in zip(first, last, own, strict=True):
        assert curve.layers[0] == of_own.layers[0] and curve.layers[1] != of_own.layers[1]
        assert of_last.layers[-1] == of_own.layers[-1] and of_last.layers[0] != of_own.layers[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "drawing"), "tasks"),
        (("--pairs", "19"), "num_pairs"),
        (("--name", "a", "--name", "b"), "2 names for 1 checkpoints"),
        (("--pairs", "100000"), "num_pairs=100000"),
        (("num_neighbours=40", "--pairs", "30"), "num_neighbours=40"),
        (("neighbours=4",), "num_neighbours"),
        (("--text-model", "nowhere"), "nowhere: holds no text model"),
        (("text_layer=99",), "text_layer=99: the path of understanding has layers 0 to"),
    ],
)  # fmt: skip
def test_arguments_at_fault_are_named(run, arguments, message, capsys):
    assert align(run, "--pairs", "24", *arguments, out="refused") == 2
    assert message in capsys.readouterr().err
    assert not (run / "refused").exists()


def test_a_model_without_the_task_is_refused(run, capsys):
    assert align(run, "--pairs", "24", "--tasks", "understanding", checkpoints=("expert",), out="refused") == 2
    assert "has the tasks generation, none of understanding" in capsys.readouterr().err
