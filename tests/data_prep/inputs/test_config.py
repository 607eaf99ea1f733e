"""Kinds of collections: selected by name, and their packages imported only if needed."""

import subprocess
import sys

import pytest

from data_prep.inputs.config import CaptionsConfig, HuggingFaceConfig, InputConfig, TarsConfig, open_input
from ufork.config import Config
from ufork.errors import ConfigError, InputError


class Section(Config):
    input: InputConfig


def test_a_collection_is_selected_by_its_kind(tmp_path):
    section = Section.from_mapping({"input": {"kind": "tars", "path": str(tmp_path)}}, origin="test")
    assert section.input == TarsConfig(path=tmp_path)
    assert Section.from_mapping(section.model_dump(mode="json"), origin="again") == section


@pytest.mark.parametrize("bad", [{"kind": "tar", "path": "x"}, {"kind": "tars"}, {"kind": "tars", "path": "x", "a": 1}])
def test_unknown_kinds_and_fields_are_refused(bad):
    with pytest.raises(ConfigError, match="input"):
        Section.from_mapping({"input": bad}, origin="test")


@pytest.mark.parametrize(("kind", "package"), [(CaptionsConfig, "pyarrow"), (HuggingFaceConfig, "datasets")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, kind, package):
    (tmp_path / "t.parquet").touch()
    for module in [name for name in sys.modules if name.startswith("data_prep.inputs.")]:
        if module.rpartition(".")[2] in ("parquet", "arrow_values", "hugging_face"):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{package}.*pip install ufork\[prep\]"):
        open_input(kind(path=tmp_path))


def test_kinds_that_need_no_package_import_none(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\n")
    script = (
        "import sys; from pathlib import Path; from data_prep.inputs.config import *;"
        "list(open_input(CaptionsConfig(path=Path(sys.argv[1]))).records());"
        "assert not {'pyarrow', 'datasets', 'torch'} & sys.modules.keys(), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "t.csv")], check=True)
