import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from pipelines import cli
from ufork.errors import CheckpointError, ConfigError, ShardError, StoppedError
from ufork.files import whole_file

HEAVY = {"torch", "numpy", "deepspeed", "megatron", "transformers", "tokenizers", "pydantic", "yaml", "wandb", "PIL"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([verb, "--help"] for verb in cli.VERBS)], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments):
    """Checks imports rather than seconds, which depend on the machine."""
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
    monkeypatch.setitem(sys.modules, "pipelines.verbs.report", stand_in)
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


@pytest.mark.parametrize(
    ("error", "failure", "exit_code"),
    [
        (ShardError("words", process_exit_code=3), "data", 1),
        (StoppedError("words"), "stopped", 75),
        (KeyError("x"), "code", 1),
    ],
)
def test_an_error_leaves_a_failure_file(verb, monkeypatch, tmp_path, error, failure, exit_code):
    path = tmp_path / "failures" / "4.json"
    monkeypatch.setenv("UFORK_FAILURE_FILE", str(path))
    monkeypatch.setenv("RANK", "4")
    assert cli.main(["report", "a.yaml"]) == 0 and not path.exists()
    verb.error = error
    try:
        assert cli.main(["report", "a.yaml"]) == exit_code
    except KeyError:
        assert failure == "code", "a bug keeps its traceback"
    record = json.loads(path.read_text())
    assert (record["failure"], record["exit_code"], record["rank"]) == (failure, exit_code, 4)
    assert (record["exception"], record["fields"]) == (type(error).__name__, getattr(error, "fields", {}))
    assert record["host"] and record["time"] and "x" in record["message"] + "x"
    verb.error = None
    assert cli.main(["report", "a.yaml"]) == 0 and not path.exists(), "the next command removes it"


def test_a_failure_file_that_cannot_be_written_does_not_hide_the_error(verb, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UFORK_FAILURE_FILE", str(tmp_path / "file" / "0.json"))
    verb.error = ShardError("words")
    assert cli.main(["report", "a.yaml"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("ufork report: words\n") and "the failure file is not written" in shown


def test_control_characters_of_a_message_are_escaped(verb, capsys):
    verb.error = ShardError("a.tar\x1b[2J:\n  second line")
    cli.main(["report", "a.yaml"])
    assert capsys.readouterr().err == "ufork report: a.tar\\x1b[2J:\n  second line\n"


def test_status_shows_why_training_failed(tmp_path, capsys):
    """Nothing is prepared: the text tokenizer is missing."""
    recipe = tmp_path / "r.yaml"
    data = "data: {understanding: [{folder: a}], generation: [{folder: a}]}"
    recipe.write_text(f"run: {{name: r, folder: {tmp_path}}}\n{data}\nphases: {{all: {{}}}}\n")
    (tmp_path / "r").mkdir()
    train = [sys.executable, "-m", "pipelines.cli", "train", str(recipe)]
    assert subprocess.run(train, capture_output=True, check=False).returncode == 1
    assert cli.main(["status", str(tmp_path / "r")]) == 0
    shown = capsys.readouterr().out
    assert "state       failed\nfailure     data\non rank     0\nshown by    " in shown
    assert str(tmp_path / "r" / "tokenizer" / "text") in shown


def test_a_bug_keeps_its_traceback(verb):
    verb.error = AssertionError("impossible")
    with pytest.raises(AssertionError):
        cli.main(["report", "a.yaml"])


def test_a_missing_recipe_is_reported_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "train", "nowhere.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "ufork train: nowhere.yaml: cannot be read (No such file or directory); give the path of a recipe\n"
    )


@pytest.mark.parametrize("verb", cli.VERBS)
def test_an_argument_that_is_not_utf8_is_named_by_every_verb(verb, capsys):
    """Row F18."""
    for arguments, named in (
        (["--prompt", b"a d\xff\xfeog"], "--prompt: not UTF-8 text: 'a d\\udcff\\udcfeog', character 4"),
        ([b"--question=ol\xe9?"], "--question: not UTF-8 text"),
        ([b"ol\xe9/recipe.yaml"], "an argument: not UTF-8 text: 'ol\\udce9/recipe.yaml'"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main([verb, *map(os.fsdecode, arguments)])
        assert ended.value.code == 2 and f"ufork {verb}: error: {named}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "r.yaml", "--ranks"),
        ("plan", "r.yaml", "--gpus"),
        ("submit", "r.yaml", "--ranks-per-node", "1", "--nodes"),
        ("checkpoint", "reshape", "step-00000001", "--ranks"),
    ],
)
@pytest.mark.parametrize("number", [str(10**20), "1.5", "inf", "true", "1" * 5000])
def test_a_number_larger_than_any_cluster_is_refused(arguments, number, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([*arguments, number])
    assert f"argument {arguments[-1]}: " in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["inf", "nan", "0", "-5", "1e9", "soon"])
def test_a_time_limit_that_no_timer_takes_is_refused(limit, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["health", "folder", "--nodes", "a", f"--timeout={limit}"])
    assert "argument --timeout: " in capsys.readouterr().err


@pytest.mark.parametrize("buffering", [1, -1])
def test_output_that_is_cut_off_is_no_error(verb, monkeypatch, buffering):
    """As by `ufork status RUN | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering) as output:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(verb, "run", lambda arguments: print("status"))
        assert cli.main(["report", "a.yaml"]) == 141


def test_output_to_a_full_disk_is_an_error(verb, monkeypatch, capsys):
    with open("/dev/full", "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(verb, "run", lambda arguments: print("status"))
        assert cli.main(["report", "a.yaml"]) == 1
    assert capsys.readouterr().err == (
        "ufork report: standard output: cannot be written (No space left on device); free space, or redirect it\n"
    )


@pytest.mark.parametrize("streams", [">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_without_streams_the_exit_code_remains(streams):
    command = f"exec {sys.executable} -m pipelines.cli train nowhere.yaml {streams}"
    assert subprocess.run(["bash", "-c", command], check=False).returncode == 2


def test_what_the_system_refuses_is_a_message(verb, capsys):
    verb.error = OSError(errno.ESTALE, "Stale file handle", "a.tar")
    assert cli.main(["report", "a.yaml"]) == 1
    assert capsys.readouterr().err == (
        "ufork report: a.tar: Stale file handle; run the same command again once the disk, server or network works\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds_any_verb(verb, monkeypatch, tmp_path, capsys, number):
    def run(arguments):
        with whole_file(tmp_path / "a"):
            signal.raise_signal(number)

    monkeypatch.setattr(verb, "run", run)
    assert cli.main(["report", "a.yaml"]) == 75
    assert capsys.readouterr().err == f"ufork report: {number.name}: stopped; run the same command again\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "latin-1"}])
def test_names_are_utf8_in_any_locale(tmp_path, locale):
    """As in containers and jobs without a locale; a terminal that lacks a character shows its number."""
    given = {**os.environ, "PYTHONUTF8": "0", **locale}
    (tmp_path / "a犬.yaml").write_text("[")
    command = [sys.executable, "-m", "pipelines.cli", "train", tmp_path / "a犬.yaml"]
    done = subprocess.run(command, env=given, capture_output=True, check=False)
    assert done.returncode == 2 and b"not valid YAML" in done.stderr
    assert "a犬.yaml".encode() in done.stderr or rb"a\u72ac.yaml" in done.stderr
