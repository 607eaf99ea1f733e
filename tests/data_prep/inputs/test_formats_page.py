"""docs/formats.md: kinds and fields in its commands are those of the config."""

import re
from pathlib import Path

from data_prep.inputs.config import InputConfig
from ufork.config import Config, merge_overrides

PAGE = Path(__file__).parents[3] / "docs/formats.md"


class Section(Config):
    input: InputConfig


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(ufork shard .*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split()[2:] for line in lines]


def test_every_kind_has_a_command_that_its_config_accepts():
    kinds = set()
    for kind, path, *rest in commands():
        overrides = [word for word in rest if word.startswith("input.")]
        mapping = merge_overrides({"input": {"kind": kind, "path": path}}, overrides)
        kinds.add(Section.from_mapping(mapping, origin=f"ufork shard {kind}").input.kind)
    assert kinds == {"images", "conversations", "captions", "tars", "huggingface"}


def test_every_field_named_on_the_page_exists():
    known = {name for config in InputConfig.__origin__.__args__ for name in config.model_fields}
    assert set(re.findall(r"\binput\.(\w+)", PAGE.read_text(encoding="utf-8"))) <= known
