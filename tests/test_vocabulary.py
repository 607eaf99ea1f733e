"""A packed sequence moves to a device whole."""

import pytest
import torch

from tests.tiny import packed_sequence
from ufork.vocabulary import PackedSequence, Task


def arrays_of(sequence: PackedSequence) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(sequence).items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize("task", Task)
def test_arrays_go_to_a_gpu_as_one_copy_from_page_locked_memory(monkeypatch, task, images):
    """The meta device, whose tensors have everything but values, stands in for the GPU."""
    sequence = packed_sequence(task, texts=[[5, 6, 7], [8, 9]], images=images)
    pinned, copied = [], []
    move = torch.Tensor.to

    def to(self, target, **options):
        if isinstance(target, torch.dtype):
            return move(self, target)
        assert (target, options) == (torch.device("cuda"), {"non_blocking": True})
        copied.append(self)
        return move(self, "meta")

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    monkeypatch.setattr(torch.Tensor, "to", to)
    moved = sequence.to("cuda")
    assert len(pinned) == len(copied) == 1 and pinned[0] is copied[0]
    for name, array in arrays_of(moved).items():
        original = getattr(sequence, name)
        assert array.is_meta and array.is_contiguous(), name
        assert (array.shape, array.dtype) == (original.shape, original.dtype), name
    assert (moved.sample_ids, moved.longest_segment) == (sequence.sample_ids, sequence.longest_segment)


@pytest.mark.gpu
@pytest.mark.parametrize("images", [True, False])
def test_a_gpu_gets_the_values_without_being_waited_for(images):
    sequence = packed_sequence(Task.GENERATION, texts=[[5, 6, 7], [8, 9]], images=images)
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = sequence.to("cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, array in arrays_of(moved).items():
        assert array.cpu().equal(getattr(sequence, name)), name
