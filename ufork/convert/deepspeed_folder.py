"""Whole weights from a DeepSpeed ZeRO checkpoint, as a safetensors file.

    DIR/latest, DIR/global_step*/*.pt -> DeepSpeed's zero_to_fp32, in another process -> a temporary .safetensors file

The files of such a checkpoint are pickles, which can name any function to be called when they are read. torch's reader
of weights calls none but those that make tensors, plain values and `PLAIN_CLASSES`; DeepSpeed's tool asks for the other
reader, and is not given it. The tool has a process of its own, whose end also frees what DeepSpeed keeps in memory.
"""

import contextlib
import importlib
import multiprocessing
import pickle
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ufork.convert.planned_file import PlannedTensor, write_planned
from ufork.convert.tensor_folder import TensorSize
from ufork.errors import CheckpointError, UforkError, first_line
from ufork.files import make_folder
from ufork.processes.worker import start_worker

PLAIN_CLASSES = (
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)
"""DeepSpeed's classes in such files, which hold numbers and do nothing when they are made."""
_TAG = r"global_step(\d+)"
_LIMIT_SECONDS = 24 * 3600.0


def find_step(folder: Path) -> Path | None:
    """Returns the `global_step*/` folder that `folder` is or names in its file `latest`, else its newest, or None."""
    if re.fullmatch(_TAG, folder.name):
        return folder
    steps = [path for path in folder.glob("global_step*") if re.fullmatch(_TAG, path.name) and path.is_dir()]
    with contextlib.suppress(OSError, UnicodeDecodeError):
        latest = folder / (folder / "latest").read_text(encoding="utf-8").strip()
        if latest in steps:
            return latest
    return max(steps, key=lambda path: int(path.name.removeprefix("global_step")), default=None)


@contextmanager
def gathered_weights(step: Path, *, scratch: Path) -> Iterator[Path]:
    """Yields a safetensors file of the checkpoint's weights in fp32, which is removed when the block ends.

    Args:
        step: a `global_step*/` folder that DeepSpeed wrote with ZeRO stage 1, 2 or 3.
        scratch: folder with room for the file.

    Raises:
        CheckpointError: DeepSpeed cannot read the folder.
        StorageError: the file cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="zero_to_fp32-", dir=make_folder(scratch)) as folder:
        path = Path(folder) / "model.safetensors"
        worker = start_worker(_gather, step, path, context=multiprocessing.get_context("spawn"), name="zero_to_fp32")
        try:
            worker.receive(_LIMIT_SECONDS)
        except UforkError:
            raise
        except EOFError:
            raise CheckpointError(f"{step}: DeepSpeed's zero_to_fp32 {worker.describe_end()}") from None
        except Exception as error:
            raise CheckpointError(
                f"{step}: DeepSpeed's zero_to_fp32 cannot read it ({first_line(error)}); give a folder with all of"
                " DeepSpeed's *_model_states.pt and *_optim_states.pt files"
            ) from None
        finally:
            worker.kill()
        yield path


def _read_values_only(step: Path) -> None:
    """Replaces this process's `torch.load` by one that runs nothing that a file of `step` names."""
    load = torch.load
    torch.serialization.add_safe_globals(
        [getattr(importlib.import_module(module), name) for module, name in PLAIN_CLASSES]
    )

    def load_values(*arguments: Any, **options: Any) -> Any:
        try:
            return load(*arguments, **{**options, "weights_only": True})
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise CheckpointError(
                f"{step}: a file {f'names {named[1]}' if named else 'is damaged, or names a function'}, and reading it"
                " could run any program; give a checkpoint that holds tensors and numbers only"
            ) from None

    torch.load = load_values


def _gather(send: Callable[[Any], None], step: Path, path: Path) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed reports its progress
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        _read_values_only(step)
        lazy = get_fp32_state_dict_from_zero_checkpoint(str(step.parent), tag=step.name, lazy_mode=True)
        write_planned(
            path,
            {name: PlannedTensor(TensorSize.of(tensor), tensor.contiguous) for name, tensor in lazy.items()},
        )
    send("written")
