"""A GPU that runs out of memory, or fails, ends training with an error that says what to change."""

import pytest
import torch

from tests.tiny_run import make_run
from ufork.errors import DeviceMemoryError, MachineError
from ufork.train.config import TrainConfig
from ufork.train.device_errors import device_errors

OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is free."
    " Of the allocated memory 70.1 GiB is allocated by PyTorch, and 3.1 GiB is reserved by PyTorch but unallocated. If"
    " reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid"
    " fragmentation.  See documentation for Memory Management  (https://docs.pytorch.org/docs/stable/notes/cuda.html)"
)


def raised_as(error, expected, config=None):
    with pytest.raises(expected) as raised:
        with device_errors("phase all, step 3", config or TrainConfig(), seq_len=64, device=torch.device("cuda", 1)):
            raise error
    return str(raised.value)


def test_out_of_memory_has_the_figures_of_torch_and_the_keys_to_change():
    message = raised_as(torch.OutOfMemoryError(OUT_OF_MEMORY), DeviceMemoryError)
    assert message.startswith("phase all, step 3: cuda:1 on ")
    assert "Tried to allocate 2.32 GiB. GPU 0 has a total capacity of 79.11 GiB" in message
    assert "expandable_segments" in message
    assert "train.activation_checkpointing=true" in message and "data.seq_len (is 64)" in message


def test_checkpointing_that_is_on_is_not_proposed():
    config = TrainConfig(activation_checkpointing=True)
    message = raised_as(torch.OutOfMemoryError(OUT_OF_MEMORY), DeviceMemoryError, config)
    assert "activation_checkpointing" not in message


def test_a_broken_device_is_told_from_a_bug():
    message = raised_as(RuntimeError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel"), MachineError)
    assert "failed: CUDA error: uncorrectable ECC error encountered; look for Xid" in message
    assert raised_as(RuntimeError("shapes differ"), RuntimeError) == "shapes differ"


@pytest.mark.slow
def test_a_run_ends_with_the_message_and_without_a_traceback(tmp_path, monkeypatch, capsys):
    from pipelines import cli
    from ufork.train import loop

    def run_step(*arguments, **keywords):
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(loop, "run_step", run_step)
    recipe, _ = make_run(tmp_path, "run")
    assert cli.main(["train", str(recipe)]) == 1
    printed = capsys.readouterr().err
    assert "ufork train: phase align, step 0: cpu on " in printed and "79.11 GiB" in printed
    assert "Traceback" not in printed
