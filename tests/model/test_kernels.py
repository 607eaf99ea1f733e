"""Kernels around matrix products are chosen once, set in every module, and named in the log."""

import logging
import sys
from types import ModuleType

import pytest
import torch

from tests.tiny import packed_sequence, tiny_model
from ufork.model import kernels
from ufork.model.kernels import (
    COMPILED,
    LIGER,
    PLAIN,
    LayerKernels,
    choose_kernels,
    compiled_kernels,
    describe_kernels,
    use_kernels,
)
from ufork.model.layers.apex import RMS_NORM
from ufork.model.layers.cross_entropy import PLAIN_CHUNKS, ChunkKernels
from ufork.model.layers.liger import liger_gated, liger_rotate
from ufork.model.layers.normalization import fused_rms_norm, rms_norm
from ufork.vocabulary import Task

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _choose_anew():
    kernels._find_kernels.cache_clear()
    yield
    kernels._find_kernels.cache_clear()


def pretend_apex(monkeypatch, **members):
    for name in (RMS_NORM.extension, "apex", "apex.normalization", RMS_NORM.module):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vars(sys.modules[RMS_NORM.module]).update(members)


def pretend_that_run(monkeypatch, *, liger: bool, compiler: bool):
    def fault_of(gate, device):
        runs = liger if gate is liger_gated else compiler
        return None if runs else "RuntimeError: failed to find a C compiler"

    monkeypatch.setattr(kernels, "_fault_of", fault_of)


@pytest.mark.parametrize(
    ("liger", "compiler", "names"),
    [
        (True, True, ("torch's fused kernel", LIGER, COMPILED)),
        (False, True, ("torch's fused kernel", COMPILED, COMPILED)),
        (False, False, ("torch's fused kernel", PLAIN, PLAIN)),
    ],
)
def test_what_runs_on_a_gpu_is_chosen_and_logged(monkeypatch, caplog, liger, compiler, names):
    pretend_that_run(monkeypatch, liger=liger, compiler=compiler)
    with caplog.at_level(logging.INFO):
        chosen = choose_kernels(CUDA)
    assert [name.startswith(expected) for name, expected in zip(chosen.names, names, strict=True)] == [True] * 3
    assert [record.message.split(": ", 1)[1] for record in caplog.records] == list(chosen.names)
    assert ("C compiler" in caplog.text) == (not liger)
    assert chosen.rms_norm is fused_rms_norm
    generated, plain = compiled_kernels(), LayerKernels()
    assert chosen.rotary is (liger_rotate if liger else generated.rotary if compiler else plain.rotary)
    assert chosen.gate is (liger_gated if liger else generated.gate if compiler else plain.gate)
    assert chosen.depth_attention is (generated if compiler else plain).depth_attention
    assert chosen.chunks is (generated if compiler else plain).chunks


def test_apex_normalizes_where_it_is_the_genuine_one(monkeypatch):
    calls = []

    def fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
        assert normalized_shape == weight.shape
        calls.append(eps)
        return rms_norm(input, weight, eps)

    pretend_that_run(monkeypatch, liger=True, compiler=True)
    pretend_apex(monkeypatch, fused_rms_norm_affine=fused_rms_norm_affine)
    chosen = choose_kernels(CUDA)
    hidden, weight = torch.randn(3, 8), torch.rand(8)
    torch.testing.assert_close(chosen.rms_norm(hidden, weight, 1e-5), rms_norm(hidden, weight, 1e-5))
    assert calls == [1e-5] and chosen.names[0] == "NVIDIA apex's fused kernel"


@pytest.mark.parametrize("missing", ["extension", "kernel", "everything"])
def test_other_packages_named_apex_are_not_used(monkeypatch, missing):
    """PyPI's has no kernel; without its compiled extension NVIDIA's raises only when one is called."""
    pretend_that_run(monkeypatch, liger=True, compiler=True)
    pretend_apex(monkeypatch, **{} if missing == "kernel" else {RMS_NORM.name: lambda *_: pytest.fail("called")})
    if missing == "extension":
        monkeypatch.setitem(sys.modules, RMS_NORM.extension, None)
    elif missing == "everything":
        monkeypatch.delitem(sys.modules, RMS_NORM.module)
    assert choose_kernels(CUDA).rms_norm is fused_rms_norm


@pytest.mark.parametrize(("device", "choice"), [(CPU, "auto"), (CUDA, "torch")])
def test_plain_torch_is_used_on_cpus_and_on_request(monkeypatch, device, choice):
    pretend_that_run(monkeypatch, liger=True, compiler=True)
    assert choose_kernels(device, choice) == LayerKernels()


def test_kernels_are_described_without_a_model():
    described = describe_kernels(CPU, torch.float32)
    assert "the device is cpu" in described["attention"] and set(described.values()) >= {PLAIN}


def test_every_module_calls_the_chosen_kernels():
    calls = set()

    def counted(name, function):
        def call(*arguments):
            calls.add(name)
            return function(*arguments)

        return call

    plain = LayerKernels()
    chosen = LayerKernels(
        rms_norm=counted("rms_norm", plain.rms_norm),
        rotary=counted("rotary", plain.rotary),
        gate=counted("gate", plain.gate),
        depth_attention=counted("depth_attention", plain.depth_attention),
        chunks=ChunkKernels(add=counted("add", PLAIN_CHUNKS.add), error=counted("error", PLAIN_CHUNKS.error)),
    )
    everywhere = {"rms_norm", "rotary", "gate", "add", "error"}
    for task, expected in (
        (Task.UNDERSTANDING, everywhere),
        (Task.GENERATION, everywhere | {"depth_attention"}),
    ):
        model, sequence = tiny_model(), packed_sequence(task, texts=[[5, 6, 7], [8, 9]])
        loss = model(sequence)
        use_kernels(model, chosen)
        calls.clear()
        model(sequence).backward()
        assert calls == expected
        assert model(sequence).equal(loss)


def test_the_reason_why_a_kernel_does_not_run_is_one_line():
    def broken(gate, up):
        raise RuntimeError("no driver\n" + "x" * 1000)

    assert kernels._fault_of(broken, CPU) == "RuntimeError: no driver"
    assert kernels._fault_of(lambda gate, up: gate * up, CPU) is None


@pytest.mark.gpu
@pytest.mark.parametrize("task", Task)
def test_a_model_of_a_gpus_kernels_equals_a_plain_one(task):
    chosen = choose_kernels(torch.device("cuda"))
    sequence = packed_sequence(task, texts=[[5, 6, 7], [8, 9, 10]])
    results = []
    for layer_kernels in (LayerKernels(), chosen):
        model = tiny_model().to("cuda")
        use_kernels(model, layer_kernels)
        loss = model(sequence.to("cuda"))
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
