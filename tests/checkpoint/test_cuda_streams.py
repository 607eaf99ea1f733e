"""How host memory is locked for a checkpoint's copies, with a stand-in for CUDA's runtime."""

from types import SimpleNamespace

import torch

from ufork.checkpoint.cuda_streams import CudaStreams


def test_cuda_locks_exactly_the_memory_and_its_refusal_is_cleared(monkeypatch):
    """torch raises CUDA's last error at the next launch of a kernel, unless something has asked for it."""
    calls, answers = [], [0, 2]
    cudart = SimpleNamespace(
        cudaHostRegister=lambda *arguments: calls.append(arguments) or answers.pop(0),
        cudaGetErrorString=lambda error: "out of memory",
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    streams = CudaStreams(torch.device("cuda", 0))
    monkeypatch.setattr(streams, "_clear_error", lambda: calls.append("cleared"))
    memory = torch.zeros(100)
    assert streams.lock_pages(memory) == ""
    assert streams.lock_pages(memory) == "out of memory"
    assert calls == [(memory.data_ptr(), 400, 1)] * 2 + ["cleared"]
