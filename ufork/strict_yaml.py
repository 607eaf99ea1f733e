"""YAML as configuration needs it: plain values, every key once, bounded in size.

    text -> nodes (size, depth and expanded aliases limited) -> mappings, lists, strings, numbers, booleans, null

Differences from `yaml.safe_load`: 1e-4 is a number, as YAML 1.2 has it; dates stay text, and so do 0100 and 1:30, which
YAML 1.1 reads as 64 and 90; a key that appears twice in a mapping is an error, as are tags, NUL and halves of surrogate
pairs (YAML can escape them, but no file name and no tokenizer takes them). Damaged or hostile input of any kind raises
`yaml.YAMLError`.
"""

import re
from typing import Any

import yaml

MAX_BYTES = 1 << 18
"""Longest text; a recipe has some thousand bytes."""
MAX_DEPTH = 32
"""Deepest nesting of mappings and lists."""
MAX_VALUES = 100_000
"""Most keys and values, each alias counted as what it stands for."""

MAX_INTEGER_CHARACTERS = 1000
"""Longest integer; Python writes no number of more than 4300 digits into a message, however it was written."""

_PREFIX = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_PREFIX + name for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge", "value")}
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_NUMBERS = {
    "int": r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F][0-9a-fA-F_]*|0b[01][01_]*)$",
    "float": r"[-+]?([0-9][0-9_]*)?\.[0-9]+([eE][-+]?[0-9]+)?$|[-+]?[0-9][0-9_]*(\.|\.?[eE][-+]?[0-9]+)$"
    r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$",
}
"""Patterns that replace those of YAML 1.1."""
_REPLACED = {_PREFIX + name for name in ("timestamp", *_NUMBERS)}


def load_yaml(text: str) -> Any:
    """Returns the value of a YAML document.

    Raises:
        yaml.YAMLError: it is no YAML, has a key twice, a tag or a character that no text can hold, or is longer, deeper
            or larger than the limits.
    """
    if len(text) > MAX_BYTES:
        raise yaml.YAMLError(f"{len(text)} characters; at most {MAX_BYTES} are read")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _require_bounded(node, {}, [])
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:  # of int(), for text that is tagged as one
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def dump_yaml(value: Any) -> str:
    """Returns `value` as YAML that `load_yaml` reads back, in the order of its keys."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)  # unicode left unescaped would lose some line breaks


class _Loader(yaml.SafeLoader):
    """Constructs plain values only."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _PLAIN_TAGS:
            raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag!r} is not allowed", node.start_mark)
        return super().construct_object(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would read as a number."""


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
        for first, resolvers in _class.yaml_implicit_resolvers.items()
    }
    for _name, _pattern in _NUMBERS.items():
        _class.add_implicit_resolver(_PREFIX + _name, re.compile(_pattern), list("-+.0123456789"))


def _require_bounded(node: yaml.Node, known: dict[int, tuple[int, int]], above: list[int]) -> tuple[int, int]:
    """Checks keys, number of values and depth of `node`, with its aliases expanded.

    Args:
        node: a value of the document.
        known: results by the identity of nodes, each of which is looked at once.
        above: identities of the nodes around it.

    Returns:
        its number of values and of levels.
    """
    where = f"line {node.start_mark.line + 1}"
    if id(node) in above:
        raise yaml.YAMLError(f"{where}: a value contains itself by an alias")
    if id(node) not in known:
        if isinstance(node, yaml.ScalarNode) and (found := _NO_TEXT.search(node.value)):
            raise yaml.YAMLError(f"{where}: the character {found[0]!a} cannot be part of a text")
        if node.tag == f"{_PREFIX}int" and len(node.value) > MAX_INTEGER_CHARACTERS:
            raise yaml.YAMLError(f"{where}: an integer of more than {MAX_INTEGER_CHARACTERS} characters")
        children = list(node.value) if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            _require_distinct_keys(node)
            children = [child for pair in children for child in pair]
        inner = [_require_bounded(child, known, [*above, id(node)]) for child in children]
        known[id(node)] = 1 + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)
    size, depth = known[id(node)]
    if len(above) + depth > MAX_DEPTH:
        raise yaml.YAMLError(f"{where}: nested deeper than {MAX_DEPTH} levels")
    if size > MAX_VALUES:
        raise yaml.YAMLError(f"{where}: more than {MAX_VALUES} values, each alias counted as what it stands for")
    return size, depth


def _require_distinct_keys(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and key.value in lines:
            raise yaml.YAMLError(f"the key {key.value!r} appears twice, in lines {lines[key.value]} and {line}")
        if isinstance(key, yaml.ScalarNode):
            lines[key.value] = line
