import subprocess
import sys

import pytest

from pipelines import cli
from ufork.errors import CheckpointError, ConfigError

HEAVY = {"torch", "numpy", "deepspeed", "megatron", "transformers", "tokenizers", "pydantic", "yaml", "wandb", "PIL"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([verb, "--help"] for verb in cli.VERBS)], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments):
    """Seconds depend on the machine; what takes them is the imports."""
    program = (
        "import sys\nfrom pipelines.cli import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        "print('modules', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    shown, _, modules = done.stdout.rpartition("modules")
    assert "ufork" in shown
    assert not HEAVY & set(modules.split())


def test_top_help_names_every_verb(capsys):
    with pytest.raises(SystemExit):
        cli.main([])
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in cli.VERBS)


def test_unknown_verb_names_the_known_ones(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["prepar"])
    assert end.value.code == 2
    assert "prepare" in capsys.readouterr().err


@pytest.fixture
def verb(monkeypatch):
    """Stands in for `ufork report`; what it raises can be set, and it keeps its arguments."""

    class Verb:
        error = None

        def add_arguments(self, parser):
            parser.add_argument("recipe")
            parser.add_argument("overrides", nargs="*")
            parser.add_argument("--ranks", type=int)

        def run(self, arguments):
            self.arguments = arguments
            if self.error:
                raise self.error

    stand_in = Verb()
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: stand_in)
    return stand_in


def test_overrides_may_stand_around_the_options(verb):
    assert cli.main(["report", "a.yaml", "x=1", "--ranks", "2", "y=2"]) == 0
    assert (verb.arguments.recipe, verb.arguments.overrides, verb.arguments.ranks) == ("a.yaml", ["x=1", "y=2"], 2)


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(ConfigError("b: unknown key"), 2), (CheckpointError("b: damaged"), 1), (KeyboardInterrupt(), 130)],
)
def test_error_becomes_a_message_and_an_exit_code(verb, capsys, error, exit_code):
    verb.error = error
    assert cli.main(["report", "a.yaml"]) == exit_code
    shown = capsys.readouterr().err
    assert shown == f"ufork report: {str(error) or 'interrupted'}\n"


def test_mistake_of_ours_keeps_its_traceback(verb):
    verb.error = AssertionError("impossible")
    with pytest.raises(AssertionError):
        cli.main(["report", "a.yaml"])


def test_recipe_that_is_missing_is_told_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "train", "nowhere.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "ufork train: nowhere.yaml: cannot be read (No such file or directory); give the path of a recipe\n"
    )
