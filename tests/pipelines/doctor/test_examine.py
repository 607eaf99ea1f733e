"""No check hangs or raises: each failure is a line, and only what is required and broken counts."""

import json
import threading
import time

import pytest
import torch

from pipelines import cli
from pipelines.commands import NoAnswer, ask
from pipelines.doctor import packages
from pipelines.doctor.examine import CHECKS, examine
from pipelines.doctor.finding import Finding, Mark
from pipelines.doctor.page import WIDTH, as_values, render


def fine(around):
    return Finding(name="fine", found="as it should be", required=True)


def raises(around):
    raise OSError("a disk that is gone")


def hangs_long(around):
    threading.Event().wait(20)


def test_a_check_that_raises_or_hangs_is_a_line_and_the_others_stand(machine):
    began = time.monotonic()
    found = examine(machine.around(timeout_seconds=0.2), {"part": (fine, raises, hangs_long)})["part"]
    assert time.monotonic() - began < 5
    assert [(each.name, each.mark) for each in found] == [
        ("fine", Mark.OK),
        ("raises", Mark.PROBLEM),
        ("hangs long", Mark.PROBLEM),
    ]
    assert "a disk that is gone" in found[1].found and "no answer in time" in found[2].found


def test_a_program_that_hangs_is_ended_with_what_it_has_started(machine):
    machine.program("nvidia-smi", f"sleep 60 &\necho $! > {machine.folder}/child\nsleep 60")
    began = time.monotonic()
    with pytest.raises(NoAnswer, match="did not answer within 0.5 s"):
        ask(["nvidia-smi"], machine.around(timeout_seconds=0.5))
    assert time.monotonic() - began < 10
    child = (machine.folder / "child").read_text().strip()
    deadline = time.monotonic() + 5
    while _is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("script", "reason"),
    [("echo no such cluster >&2; exit 3", "no such cluster"), ("exit 3", "exit code 3"), ("kill -9 $$", "by SIGKILL")],
)
def test_a_program_that_fails_is_told_by_its_own_words_or_its_end(machine, script, reason):
    machine.program("scontrol", script)
    with pytest.raises(NoAnswer, match=reason):
        ask(["scontrol", "ping"], machine.around())


BROKEN = Finding(name="torch", mark=Mark.PROBLEM, found="a word " * 60, remedy="mend it", required=True)
LACKING = Finding(name="a name", mark=Mark.ABSENT, found="not here", instead="does without")


def test_page_is_no_wider_than_a_terminal_and_says_what_breaks():
    page = render({"part": [BROKEN, LACKING]}, title="a machine", colour=False)
    assert max(map(len, page.splitlines())) <= WIDTH
    assert "ufork does without" in page and "to get it: mend it" in page
    assert page.splitlines()[-1] == "ufork cannot run here before this is mended: torch"
    assert render({"part": [LACKING]}, title="", colour=False).endswith("ufork runs here: 1 absent, 0 to look at")
    assert "\033[31mproblem" in render({"part": [BROKEN]}, title="", colour=True)


def test_values_are_those_of_the_page():
    (values,) = json.loads(json.dumps(as_values({"part": [LACKING]})))["part"]
    assert (values["name"], values["mark"], values["required"]) == ("a name", "absent", False)


@pytest.mark.parametrize(("check", "code"), [(fine, 0), (lambda around: BROKEN, 1), (lambda around: LACKING, 0)])
def test_exit_code_tells_whether_something_required_is_broken(check, code, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("pipelines.doctor.examine.CHECKS", {"part": (check,)})
    assert cli.main(["doctor", str(tmp_path)]) == code
    assert ("torch" in capsys.readouterr().err) == bool(code)


def test_no_check_is_left_out_of_the_page():
    names = [check.__name__ for group in CHECKS.values() for check in group]
    assert len(names) == len(set(names)) >= 16


def test_what_tests_need_is_found_here_as_values(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("pipelines.doctor.examine.CHECKS", {"here": (packages.python, packages.torch)})
    assert cli.main(["doctor", str(tmp_path), "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)["here"]}
    assert found["Python"]["mark"] == found["torch"]["mark"] == "ok"
    assert torch.__version__ in found["torch"]["found"]
