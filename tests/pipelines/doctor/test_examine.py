"""No check hangs or raises: each failure is a line, and only what is required and broken counts."""

import json
import threading

import pytest
import torch

from pipelines import cli
from pipelines.doctor import packages
from pipelines.doctor.examine import CHECKS, examine
from pipelines.doctor.finding import Finding, Mark
from pipelines.doctor.page import WIDTH, as_values, render


def fine(around):
    return Finding(name="fine", found="as it should be", required=True)


def raises(around):
    raise OSError("a disk that is gone")


def hangs_long(around):
    threading.Event().wait()


def test_a_check_that_raises_or_hangs_is_a_line_and_the_others_are_reported(machine):
    found = examine(machine.around(timeout_seconds=1), {"section": (fine, raises, hangs_long)})["section"]
    assert [(each.name, each.mark) for each in found] == [
        ("fine", Mark.OK),
        ("raises", Mark.PROBLEM),
        ("hangs long", Mark.SLOW),
    ]
    assert "a disk that is gone" in found[1].found and "timed out after 2.5 s" in found[2].found


BROKEN = Finding(name="torch", mark=Mark.PROBLEM, found="a word " * 60, remedy="reinstall it", required=True)
SLOW = Finding(name="megatron-core", mark=Mark.SLOW, found="timed out after 180 s", required=True)
LACKING = Finding(name="a name", mark=Mark.ABSENT, found="not here", instead="does without")


def test_page_fits_a_terminal_and_names_the_broken_requirements():
    page = render({"section": [BROKEN, LACKING]}, title="a machine", colour=False)
    assert max(map(len, page.splitlines())) <= WIDTH
    assert "ufork does without" in page and "to fix it: reinstall it" in page
    assert page.splitlines()[-1] == "ufork cannot run here until this is fixed: torch"
    assert render({"section": [LACKING]}, title="", colour=False).endswith("ufork runs here: 1 absent, 0 to look at")
    assert render({"section": [SLOW]}, title="", colour=False).endswith("0 absent, 0 to look at, 1 timed out")
    assert "\033[31mproblem" in render({"section": [BROKEN]}, title="", colour=True)


def test_output_of_other_programs_cannot_control_the_terminal():
    noisy = Finding(name="GPUs", mark=Mark.PROBLEM, found="no list: \033[2J\x07")
    assert "\\x1b[2J\\x07" in render({"section": [noisy]}, title="", colour=False)


def test_values_are_those_of_the_page():
    (values,) = json.loads(json.dumps(as_values({"section": [LACKING]})))["section"]
    assert (values["name"], values["mark"], values["required"]) == ("a name", "absent", False)


@pytest.mark.parametrize(
    ("check", "code"), [(fine, 0), (lambda around: BROKEN, 1), (lambda around: LACKING, 0), (lambda around: SLOW, 0)]
)
def test_exit_code_shows_whether_something_required_is_broken(check, code, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("pipelines.doctor.examine.CHECKS", {"section": (check,)})
    assert cli.main(["doctor", str(tmp_path)]) == code
    assert ("torch" in capsys.readouterr().err) == bool(code)


def test_every_check_is_on_the_page():
    names = [check.__name__ for group in CHECKS.values() for check in group]
    assert len(names) == len(set(names)) >= 16


def test_values_include_what_the_tests_need(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("pipelines.doctor.examine.CHECKS", {"here": (packages.python, packages.torch)})
    assert cli.main(["doctor", str(tmp_path), "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)["here"]}
    assert found["Python"]["mark"] == found["torch"]["mark"] == "ok"
    assert torch.__version__ in found["torch"]["found"]
