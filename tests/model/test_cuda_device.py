"""What is said of a CUDA device, and a kernel on one."""

import pytest
import torch

from ufork.model.cuda_device import computes_bf16, memory_figures, run_kernel


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_ampere_and_newer_compute_bf16(monkeypatch, capability, native):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert computes_bf16(torch.device("cuda", 0)) is native


def test_figures_of_memory_are_those_of_torch_without_its_link():
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a total capacity of 79.11 GiB.  See documentation"
        " for Memory Management  (https://docs.pytorch.org/docs/stable/notes/cuda.html)\nException raised from malloc"
    )
    assert memory_figures(error) == "Tried to allocate 2.32 GiB. GPU 0 has a total capacity of 79.11 GiB."


@pytest.mark.gpu
def test_a_kernel_runs_on_a_gpu():
    run_kernel(torch.device("cuda", 0))
