"""Joins definitions of several modules of ufork to one file that needs no ufork: the code of an exported model.

    modules of ufork -> the definitions that the wanted ones use, each after those it uses -> text of one module

An exported model therefore computes with the same source as ufork, and there is no second model to keep equal to it.

A name counts as used wherever it occurs, except in annotations, which the joined file never evaluates. A definition is
a function, a class or an assignment at the top of a module; classes are taken whole. `ufork.config`, which checks
configs by pydantic, is replaced by `plain_config.py`: ufork has checked the values that it exports.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPLACEMENTS = {"ufork.config": "ufork.hugging_face.plain_config", "pydantic": "ufork.hugging_face.plain_config"}
"""Modules that are not joined, and what takes their place."""
PACKAGE = "ufork"


@dataclass(frozen=True)
class Definition:
    """A statement at the top of a module, with the comment before it and the docstring after it."""

    module: str
    text: str
    names: tuple[str, ...]
    uses: frozenset[str]
    """Every name in it outside annotations, whatever it refers to."""
    words: frozenset[str]
    """Every name in it."""


@dataclass
class Module:
    """Source of a module, by statements."""

    name: str
    docstring: str
    definitions: list[Definition] = field(default_factory=list)
    own_imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    """(module of ufork, name there) by the name here."""
    foreign_imports: dict[str, str] = field(default_factory=dict)
    """Import statement by the name that it binds."""


def bundle(module: str, *, title: str) -> str:
    """Returns the source of one file with all of `module`, and what that uses of other modules.

    Args:
        module: dotted name of a module of ufork; every definition in it is wanted.
        title: first paragraph of the file's docstring.
    """
    modules = _reachable(module)
    needed = _needed(modules, module)
    renamed = _new_names(needed)
    foreign = [(modules[d.module].foreign_imports, d) for d in needed]
    imports = sorted({known[name] for known, d in foreign for name in d.words if name in known})
    sections = [f'"""{title}"""', "from __future__ import annotations", "\n".join(imports)]
    for name, source in modules.items():
        texts = [_text(d, source, renamed) for d in needed if d.module == name]
        if texts:
            heading = "\n".join(f"# {line}".rstrip() for line in [f"---- {name}", "", *source.docstring.splitlines()])
            sections += [heading, *texts]
    return "\n\n\n".join(sections) + "\n"


def _reachable(root: str) -> dict[str, Module]:
    """Returns `root` and all modules that it imports, each after those that it imports itself."""
    found: dict[str, Module] = {}

    def visit(name: str) -> None:
        if name in found:
            return
        module = _read(name)
        for imported, _ in module.own_imports.values():
            visit(imported)
        found[name] = module

    visit(root)
    return found


def _read(name: str) -> Module:
    spec = importlib.util.find_spec(name)
    assert spec and spec.origin, name
    text = Path(spec.origin).read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    module, end = Module(name, ast.get_docstring(tree) or ""), 0
    for statement, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            _note_imports(module, statement)
        elif names := _names_of(statement):
            assert statement.end_lineno
            last = statement.end_lineno
            if _is_docstring(following) and not isinstance(statement, ast.FunctionDef | ast.ClassDef):
                assert following and following.end_lineno
                last = following.end_lineno
            words = frozenset(node.id for node in ast.walk(statement) if isinstance(node, ast.Name))
            uses = frozenset(_used_names(statement))
            module.definitions.append(Definition(name, "\n".join(lines[end:last]).strip("\n"), names, uses, words))
        end = statement.end_lineno or end
    return module


def _note_imports(module: Module, statement: ast.Import | ast.ImportFrom) -> None:
    source = statement.module or "" if isinstance(statement, ast.ImportFrom) else ""
    for alias in statement.names:
        bound = alias.asname or alias.name.split(".")[0]
        replacement = REPLACEMENTS.get(source)
        if replacement or source.split(".")[0] == PACKAGE:
            assert alias.asname is None, f"{module.name}: joined modules share their names, so none is imported `as`"
            module.own_imports[bound] = (replacement or source, alias.name)
        else:
            module.foreign_imports[bound] = ast.unparse(
                ast.ImportFrom(source, [alias], 0) if source else ast.Import([alias])
            )


def _names_of(statement: ast.stmt) -> tuple[str, ...]:
    """Returns the names that a statement defines; empty for docstrings and blocks such as `if TYPE_CHECKING`."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return (statement.name,)
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return tuple(node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))
    return ()


def _is_docstring(statement: ast.stmt | None) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _used_names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name):
        yield node.id
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _used_names(child)


def _needed(modules: dict[str, Module], root: str) -> list[Definition]:
    """Returns the definitions of `root` and those that they use, in the order of the modules."""
    by_name = {(d.module, name): d for module in modules.values() for d in module.definitions for name in d.names}
    waiting, needed = list(modules[root].definitions), set[Definition]()
    while waiting:
        definition = waiting.pop()
        if definition in needed:
            continue
        needed.add(definition)
        imported = modules[definition.module].own_imports
        places = (imported.get(name, (definition.module, name)) for name in definition.uses)
        waiting += [by_name[place] for place in places if place in by_name]
    return [d for module in modules.values() for d in module.definitions if d in needed]


def _new_names(needed: list[Definition]) -> dict[tuple[str, str], str]:
    """Returns, by module and name, another name for what a module before it has already called so."""
    taken: dict[str, Definition] = {}
    renamed = {}
    for definition in needed:
        for name in definition.names:
            first = taken.setdefault(name, definition)
            if first.module != definition.module and first.text != definition.text:
                place = definition.module.rpartition(".")[2]
                new = f"{place.title()}{name}" if name[0].isupper() else f"_{place}_{name.lstrip('_')}"
                renamed[definition.module, name] = new
    return renamed


def _text(definition: Definition, module: Module, renamed: dict[tuple[str, str], str]) -> str:
    text = definition.text
    for name in definition.words | set(definition.names):
        new = renamed.get(module.own_imports.get(name, (module.name, name)))
        if new:
            text = re.sub(rf"(?<![\w.]){name}\b", new, text)
    return text
