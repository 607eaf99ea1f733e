"""The commit of a checkout, of changed files, and of copies of the code."""

import os
import subprocess

import pytest

from pipelines.ablation.origin import COMMIT_FILE, commit_of, machine_of


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments):
        names = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *names, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "code.py").write_text("1\n")
    git("add", "code.py")
    git("commit", "-m", "first")
    return tmp_path


def test_a_checkout_has_its_commit_and_a_mark_if_files_were_changed(checkout):
    commit = commit_of(checkout, os.environ)
    assert len(commit) == 12 and int(commit, 16)
    (checkout / "new").touch()
    assert commit_of(checkout, os.environ) == commit
    (checkout / "code.py").write_text("2\n")
    assert commit_of(checkout, os.environ) == f"{commit}+"


def test_a_copy_has_the_commit_that_it_says_or_none(checkout):
    copy = checkout / "runs" / "code"
    copy.mkdir(parents=True)
    assert commit_of(copy, os.environ) == "", "not that of the checkout around it"
    (copy / COMMIT_FILE).write_text("0123456789ab\n")
    assert commit_of(copy, os.environ) == "0123456789ab"
    assert commit_of(checkout, {"PATH": ""}) == "", "without git"


def test_a_machine_is_described_by_its_cores(monkeypatch):
    assert " cores of " in machine_of({"CUDA_VISIBLE_DEVICES": ""})
