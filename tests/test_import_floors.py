"""Import floors: imports point downwards only. FLOORS lists them bottom up, as docs/architecture.md draws them."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    [
        "ufork.errors",
        "ufork.strict_yaml",
        "ufork.redaction",
        "ufork.config",
        "ufork.vocabulary",
        "ufork.network_address",
    ],
    ["ufork.files", "ufork.tensor_file", "ufork.processes", "ufork.without_initialization", "ufork.markdown"],
    ["ufork.run_folder"],
    ["ufork.model", "ufork.vision", "ufork.data"],
    ["ufork.infer", "ufork.parallel"],
    ["ufork.checkpoint", "ufork.planning", "ufork.eval", "ufork.convert"],
    ["ufork.analysis"],
    ["data_prep.inputs"],
    ["data_prep.filtering", "data_prep.demo"],
    ["ufork.report", "data_prep"],
    ["ufork.hugging_face"],
    ["ufork.train"],
    ["pipelines"],
    ["benchmarks"],
]

SEPARATE = {"ufork.model", "ufork.vision", "ufork.data"}
"""Siblings that never import each other; they share ufork.vocabulary."""
NO_PARALLELISM = ("torch.distributed", "deepspeed", "megatron")
"""Packages that ufork.model must not import: parallelism is applied to it from outside."""
NO_TORCH = [
    "ufork/errors.py",
    "ufork/strict_yaml.py",
    "ufork/config.py",
    "ufork/redaction.py",
    "ufork/vocabulary.py",
    "ufork/processes/child.py",
    "ufork/parallel/rank_environment.py",
    "ufork/train/check_phase.py",
    "ufork/train/trainable.py",
    "pipelines/check_recipe.py",
    "ufork/parallel/layout.py",
    "ufork/parallel/layout_checks.py",
    *(str(path.relative_to(ROOT)) for path in (ROOT / "ufork/parallel/schedule").glob("*.py")),
    "pipelines/cli.py",
]
"""Files that import no heavy package, besides every config.py."""

SOURCES = sorted(
    path for room in ("ufork", "pipelines", "data_prep", "benchmarks") for path in (ROOT / room).rglob("*.py")
)
MOST_LOOSE_FILES = 15
"""Most modules in one folder, besides its __init__.py; pipelines/verbs has one per verb, and no limit."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in SOURCES}


def room_of(module: str) -> str | None:
    return next((room for rooms in FLOORS for room in rooms if within(module, room)), None)


def floor_of(room: str) -> int:
    return next(floor for floor, rooms in enumerate(FLOORS) if room in rooms)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imports_of(text: str, module: str, *, is_package: bool) -> list[str]:
    """Returns absolute names of everything that the file imports; `from a import b` gives a.b."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            names += [".".join([*base, alias.name]) for alias in node.names]
    return names


def faults(text: str, module: str, *, is_package: bool = False) -> list[str]:
    """Returns the violations of the floors by a file; empty if there is none."""
    here = room_of(module)
    found = []
    for name in imports_of(text, module, is_package=is_package):
        there = room_of(name)
        if here and there and floor_of(there) > floor_of(here):
            found.append(f"{module} imports {name}, which is on a higher floor")
        if here in SEPARATE and there in SEPARATE and here != there:
            found.append(f"{module} imports {name}: they share only ufork.vocabulary")
        if here == "ufork.model" and any(within(name, package) for package in NO_PARALLELISM):
            found.append(f"{module} imports {name}: the model must not depend on parallelism")
    return found


def imported_at_once(path: Path) -> set[str]:
    """Top-level packages imported when the file is, excluding TYPE_CHECKING blocks and function bodies."""
    statements = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in statements if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in statements if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


def import_graph() -> dict[str, set[str]]:
    """Returns the modules of the project that each module imports."""
    graph = {}
    for path in SOURCES:
        names = imports_of(path.read_text(), module_of(path), is_package=path.name == "__init__.py")
        modules = {name if name in MODULES else name.rpartition(".")[0] for name in names}
        graph[module_of(path)] = (modules & MODULES) - {module_of(path)}
    return graph


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_point_downwards(path):
    assert not faults(path.read_text(), module_of(path), is_package=path.name == "__init__.py")


def test_no_import_cycle():
    order = graphlib.TopologicalSorter(import_graph())
    order.prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize("folder", sorted({path.parent for path in SOURCES}), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_folder_has_few_modules(folder):
    assert (
        folder == ROOT / "pipelines/verbs"
        or len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST_LOOSE_FILES
    )


def test_every_package_of_ufork_has_a_floor():
    packages = {module_of(path) for path in (ROOT / "ufork").glob("*/__init__.py")}
    assert packages <= {room for rooms in FLOORS for room in rooms}


@pytest.mark.parametrize(
    "path", [ROOT / name for name in NO_TORCH] + [path for path in SOURCES if path.name == "config.py"], ids=module_of
)
def test_file_imports_no_heavy_package(path):
    assert not imported_at_once(path) & {"torch", "deepspeed", "megatron", "transformers", "numpy"}


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("ufork.model.decoder", "import torch.distributed as dist"),
        ("ufork.model.decoder", "def f():\n    from torch import distributed"),
        ("ufork.model.decoder", "from ufork.data import packing"),
        ("ufork.vision.codec", "from ..data.sample import Sample"),
        ("ufork.config", "import ufork.train.config"),
        ("ufork.eval.evaluate", "from ufork import train"),
        ("ufork.eval.evaluate", "import pipelines.recipe"),
    ],
)
def test_violation_is_detected(module, text):
    assert faults(text, module)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("ufork.model.decoder", "from torch import Tensor\nfrom ufork.vocabulary import Task"),
        ("ufork.train.step", "from ufork.train import optimizer\nfrom ufork.model.unifork import UniFork"),
        ("pipelines.verbs.prepare", "from data_prep.demo.prepare import prepare"),
        ("ufork.infer.draw", "from ..model import rq_head"),
    ],
)
def test_allowed_import_is_no_violation(module, text):
    assert not faults(text, module)
