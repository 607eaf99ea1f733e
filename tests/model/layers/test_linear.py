"""Linear layers by oneDNN are torch's own, forward and backward."""

import pytest
import torch
from torch import nn

from ufork.model.kernels import use_linear
from ufork.model.layers.linear import OneDnnLinear, default_linear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.mark.parametrize(("outputs", "bias"), [(7, True), (7, False), (20, True)])
@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (0, 12)])
def test_results_and_gradients_are_those_of_torch(shape, outputs, bias):
    ours = nn.Linear(12, outputs, bias=bias)
    theirs = nn.Linear(12, outputs, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    ours.__class__ = OneDnnLinear
    inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)]
    results = [layer(x) for layer, x in zip((ours, theirs), inputs, strict=True)]
    for out in results:
        (out * torch.arange(outputs)).sum().backward()
    torch.testing.assert_close(*results)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize(
    ("capability", "expected"), [("AVX512", OneDnnLinear), ("AVX2", OneDnnLinear), ("DEFAULT", nn.Linear)]
)
def test_fp32_uses_onednn_only_with_avx2_or_avx512(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    use_linear(model, default_linear(torch.device("cpu"), torch.float32))
    assert type(model[0]) is expected


def test_other_precisions_use_torch(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert default_linear(torch.device("cpu"), torch.bfloat16) == "torch"
