"""The arguments of verbs that compute with a trained model. Imports nothing heavy, so that help is quick."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ufork.infer.model import TrainedModel


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the weights of one trained model, and where it computes."""
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="folder of exported weights, such as RUN/phases/PHASE/weights"
    )
    add_device_arguments(parser)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds where the model computes, and in which precision."""
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda or cuda:N (default: the first GPU that torch can use, or the CPU)"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="precision of the model (default: bf16 on GPUs of compute capability 8.0 or newer, otherwise fp32)",
    )


@contextmanager
def memory_errors(remedy: str) -> Iterator[None]:
    """Raises CUDA's lack of memory inside the block as an error for people; `remedy` says how to need less.

    Raises:
        DeviceMemoryError: the GPU has too little memory for the model and its batch.
    """
    try:
        yield
    except RuntimeError as error:
        import torch

        from ufork.errors import DeviceMemoryError
        from ufork.model.cuda_device import memory_figures

        if not isinstance(error, torch.OutOfMemoryError):
            raise

        raise DeviceMemoryError(
            f"the GPU has too little memory. {memory_figures(error)} {remedy}, or use --device cpu"
        ) from error


def load_model(checkpoint: Path, arguments: argparse.Namespace) -> "TrainedModel":
    """Returns the trained model in `checkpoint` on the device that `arguments` name.

    Raises:
        ConfigError: the device or the precision cannot be used.
        CheckpointError: weights are missing or damaged.
        TokenizerError: a tokenizer is missing or damaged.
    """
    from ufork.infer.device import choose_device, choose_dtype, use_device
    from ufork.infer.model import TrainedModel

    device = choose_device(arguments.device)
    use_device(device)
    return TrainedModel.load(checkpoint, device=device, dtype=choose_dtype(device, arguments.precision))
