"""The documentation is checked: links resolve, commands parse, and every code block that can run is run."""

import argparse
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from pipelines import cli
from pipelines.recipe import Recipe
from tests.tiny import DIMENSIONS, tiny_config, tiny_tokenizer
from tests.tiny_run import make_run
from ufork.infer.config import DrawConfig
from ufork.infer.model import save_trained
from ufork.model.initialization import initialize
from ufork.model.unifork import UniFork
from ufork.model.weights import WeightsConfig
from ufork.vision.codec import ImageCodec

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "slurm").rglob("*.md")])
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"sh", "python", "yaml", "json", "text", "mermaid"}
QUICK = {"plan", "status", "draw", "answer", "checkpoint"}
"""Verbs whose commands are run as they stand, in a folder with the weights of an untrained demo run."""


def blocks(language: str) -> list:
    """The code blocks in `language` of all pages, as parameters that are named by page and line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            if match[2] == language:
                line = text.count("\n", 0, match.start()) + 1
                code = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
                found.append(pytest.param(code, id=f"{page.relative_to(ROOT)}:{line}"))
    return found


def commands(code: str) -> list[list[str]]:
    """The commands of a shell block, one list of words each; comments are dropped."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with `pipelines/`, `docs/`, `tests/` and `runs/demo`, whose weights are untrained."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("pipelines", "docs", "slurm", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "runs").mkdir()
    _, run = make_run(folder / "runs", "demo")
    recipe = {**yaml.safe_load((folder / "runs/demo.yaml").read_text()), "phases": {"joint": {}, "understanding": {}}}
    (run.path / "config.yaml").write_text(yaml.safe_dump(recipe))
    model = UniFork(tiny_config(), DIMENSIONS)
    initialize(model, seed=0)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    codec = ImageCodec.load(run.vision_tokenizer)
    for phase in recipe["phases"]:
        config = WeightsConfig(model=tiny_config(), dimensions=DIMENSIONS)
        save_trained(run.phase(phase).weights, weights, config, tiny_tokenizer(), codec, DrawConfig())
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_text_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    code = "\n".join(re.findall(r"`([^`\n]+)`", text))
    assert set(re.findall(r"\bufork ([a-z]+)", code)) <= cli.VERBS.keys()
    assert set(re.findall(r"\bmake ([\w-]+)", code)) <= set(targets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_of_the_project_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:ufork|pipelines|data_prep|tests|slurm|docs|benchmarks)/[\w./-]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_code_block_names_its_language(page):
    assert {match[2] for match in BLOCK.finditer(page.read_text(encoding="utf-8"))} <= LANGUAGES


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    torch.manual_seed(0)
    try:
        exec(compile(code, "<documentation>", "exec"), {"__name__": "documentation"})
    except ConnectionError as error:
        pytest.skip(f"needs the network: {error}")


@pytest.mark.parametrize("code", blocks("sh"))
def test_shell_commands_are_accepted_and_quick_ones_run(code, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for words in commands(code):
        if words[0].endswith("ufork"):
            accept(words[1:])
        elif words[0] == "make":
            assert words[1] in targets
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), words


def accept(words: list[str]) -> None:
    """Parses a command line of `ufork`, and runs it where that takes seconds."""
    verb = importlib.import_module(f"pipelines.verbs.{words[0]}")
    parser = argparse.ArgumentParser(exit_on_error=False)
    verb.add_arguments(parser)
    arguments = [word for word in words[1:] if word != "..."]
    parser.parse_intermixed_args(arguments)
    if words[0] in QUICK and Path("runs/demo").exists() and "RUN" not in " ".join(words):
        assert cli.main(words) == 0


@pytest.mark.parametrize("code", blocks("yaml"))
def test_yaml_is_part_of_a_recipe(code):
    mapping = yaml.safe_load(code)
    Recipe.from_mapping({"run": {"name": "documentation"}, **mapping}, origin="documentation")


@pytest.mark.parametrize("code", blocks("json"))
def test_json_is_valid(code):
    try:
        json.loads(code)
    except ValueError:  # one value per line
        assert all(json.loads(line) for line in code.splitlines())
