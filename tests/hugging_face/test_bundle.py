"""The code of an exported folder: complete, without ufork, and the same as ufork's."""

import ast
import builtins
import dis
import inspect
import sys
from types import ModuleType

import pytest
import torch

from tests.tiny import DIMENSIONS, tiny_config
from ufork.hugging_face import modeling
from ufork.hugging_face.bundle import bundle
from ufork.hugging_face.configuration import UniForkConfig
from ufork.model.rq_head import DepthAttention

SIZES = {
    "kind": "rqvae", "image_px": 16, "patch_px": 8, "hidden_width": 16, **DIMENSIONS.model_dump(exclude={"vocab_size"})
}  # fmt: skip
CONFIG = {
    **tiny_config().model_dump(mode="json"),
    "head_dim": tiny_config().head_dim,
    **{"vocab_size": 300, "num_hidden_layers": 3, "image_token_id": 3, "image_tokenizer": SIZES},
}


@pytest.fixture(scope="module")
def code():
    return bundle("ufork.hugging_face.modeling", title="A title")


@pytest.fixture(scope="module")
def joined(code):
    """The code as a module."""
    module = sys.modules["joined_modeling"] = ModuleType("joined_modeling")
    exec(compile(code, "joined_modeling.py", "exec"), vars(module))
    yield module
    del sys.modules["joined_modeling"]


@pytest.mark.parametrize("name", ["modeling", "processing"])
def test_it_imports_nothing_but_torch_and_transformers(name):
    tree = ast.parse(bundle(f"ufork.hugging_face.{name}", title=""))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    packages = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert packages <= {"torch", "transformers", "numpy", "PIL"}


def test_every_name_that_it_evaluates_is_there(code, joined):
    known = vars(joined).keys() | vars(builtins).keys()
    assert not _globals_of(compile(code, "", "exec")) - known


def _globals_of(code):
    """Names of the module that functions and classes inside a code object load."""
    loaded = {each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"}
    return loaded.union(*(_globals_of(inner) for inner in code.co_consts if inspect.iscode(inner)))


def test_definitions_are_those_of_ufork(code):
    assert inspect.getsource(DepthAttention) in code


def test_two_classes_of_one_name_are_kept_apart(code, joined):
    assert joined.Attention is not joined.DecoderAttention
    assert "self.attention = DecoderAttention(config)" in code


def test_it_computes_the_same(joined):
    torch.manual_seed(0)
    model = modeling.UniForkForConditionalGeneration(UniForkConfig(**CONFIG)).eval()
    again = joined.UniForkForConditionalGeneration(joined.UniForkConfig(**CONFIG)).eval()
    again.load_state_dict(model.state_dict())
    tokens = torch.tensor([[5, 6, 3, 3, 3, 3, 3, 3]])
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    for task in ("understanding", "generation"):
        logits = [each(input_ids=tokens, pixel_values=pixels, task=task).logits for each in (model, again)]
        assert torch.equal(*logits)
