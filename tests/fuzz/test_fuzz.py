"""Mutated inputs of every kind are refused, skipped or read; and the runner finds what is none of these."""

import json
import mmap
import os
import time
from random import Random

import pytest

from tests.fuzz.mutations import json_text, mutated
from tests.fuzz.runner import Limits, run, save
from tests.fuzz.targets import TARGETS
from tests.fuzz.targets.target import Target
from ufork.errors import ShardError

INPUTS = 12
SLOW_SECONDS = 5.0


def findings(target, kind, **bounds):
    return [finding for finding in run(target, kind=kind, **{"first": 0, "limits": Limits(), **bounds}) if finding]


@pytest.mark.parametrize("kind", TARGETS)
def test_mutated_inputs_are_refused_skipped_or_read(kind):
    assert findings(TARGETS[kind], kind, stop=INPUTS) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
def test_many_mutated_inputs_are_refused_skipped_or_read(kind):
    deadline = time.monotonic() + SLOW_SECONDS
    assert findings(TARGETS[kind], kind, first=INPUTS, stop=10**9, deadline=deadline) == []


def write_number(folder):
    (folder / "number").write_text("7")


def read_number(folder):
    """Has a fault for each of some numbers, which the tests below write in place of 7."""
    match (folder / "number").read_text():
        case "1":
            raise KeyError("1")
        case "2":
            raise BaseException("a panic")
        case "3":
            raise ShardError("3: refused")
        case "4":
            raise ShardError
        case "5":
            time.sleep(60)
        case "6":
            os._exit(0)
        case "7":
            return 7
        case "8":
            with mmap.mmap(-1, 200 * 2**20) as memory:  # not by malloc, which may have kept as much
                memory[:: mmap.PAGESIZE] = bytes(len(memory) // mmap.PAGESIZE)
                return len(memory)
        case _:
            return 0


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        ("1", "KeyError at tests/fuzz/test_fuzz.py"),
        ("2", "BaseException at tests/fuzz/test_fuzz.py"),
        ("3", None),
        ("4", "ShardError without a message"),
        ("5", "takes more than 1 s"),
        ("6", "ends the process (0)"),
        ("7", None),
        ("8", "takes more than 0.125 GiB"),
        ("9", "another result"),
    ],
)
def test_the_runner_finds_what_is_neither_refused_nor_the_same_result(number, problem, monkeypatch):
    monkeypatch.setattr("tests.fuzz.runner.mutated", lambda contents, random, structure: number.encode())
    target = Target(
        write=write_number,
        files={"number": None},
        read=read_number,
        fault=lambda valid, found: "another result" if found == 0 else "",
    )
    found = list(run(target, kind="k", first=3, stop=5, limits=Limits(seconds=1.0, memory_bytes=2**27)))
    assert len(found) == 2, "another worker goes on"
    for expected, finding in enumerate(found, start=3):
        assert (finding is None) == (problem is None)
        assert finding is None or (finding.number == expected and finding.problem.startswith(problem))


def test_a_finding_is_saved_with_how_to_repeat_it(tmp_path):
    target = Target(
        write=write_number, files={"number": None}, read=lambda folder: 1 // ((folder / "number").stat().st_size == 1)
    )
    number, finding = next(
        (n, f) for n, f in enumerate(run(target, kind="a kind", first=0, stop=99, limits=Limits())) if f
    )
    folder = save(finding, target, "a kind", tmp_path)
    text = (folder / "README.txt").read_text()
    assert f"--kind 'a kind' --first {number} --inputs 1" in text and "ZeroDivisionError" in text
    assert (folder / "number").stat().st_size != 1


def test_numbers_decide_inputs():
    contents = json.dumps({"a": [1, {"b": "c"}]}).encode()
    one, again, other = (mutated(contents, Random(seed), json_text) for seed in (1, 1, 2))
    assert one == again != other
