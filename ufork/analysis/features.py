"""Pooled features of image-text pairs after every layer of a task's path.

    pairs -> sequences in the task's form -> packed -> forward pass; a hook pools each layer's output -> FeatureFiles

Image features come from the image's positions in a sample of the task: after the prompt in generation, before the
question in understanding. Text features come from the text alone on the same path. In generation that is the same as
the prompt's tokens of the sample, since no token sees a later one; in understanding the text is run without its image.

Activations live for one packed sequence. The features of a layer are written to a file per side as they are computed,
so memory does not grow with pairs times layers.

Shapes: N pairs, S samples of a packed sequence, T its tokens, D hidden size, L layers.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ufork.analysis.config import Pooling
from ufork.analysis.pairs import Pair
from ufork.data.packing import pack_sequence
from ufork.data.prompts import CodecSizes, EncodedSample, encode_sample
from ufork.errors import StorageError
from ufork.files import make_folder
from ufork.infer.model import TrainedModel
from ufork.model.layers.attention import PackedAttention
from ufork.model.unifork import Branch, DecoderStack
from ufork.vocabulary import PackedSequence, Task

Side = Literal["image", "text"]
SIDES: tuple[Side, ...] = ("image", "text")
SEQUENCE_TOKENS = 8192
"""Tokens of the packed sequences of the forward passes; a sample that is longer has a sequence of its own."""


@dataclass(frozen=True, kw_only=True)
class FeatureFiles:
    """The features of N pairs: one array ND in fp32 per layer and side."""

    folder: Path
    num_pairs: int
    num_layers: int
    """Layers on the path, and one more for the first layer's input, which is number 0."""

    def read(self, side: Side, layer: int) -> Tensor:
        """Returns the features ND of one layer."""
        return torch.from_numpy(np.load(self._path(side, layer)))

    def _path(self, side: Side, layer: int) -> Path:
        return self.folder / f"{side}-{layer:03d}.npy"

    def _open(self, side: Side, layer: int, width: int) -> np.ndarray:
        shape, path = (self.num_pairs, width), self._path(side, layer)
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        with open(path, "r+b") as file:  # a full disk is an error now, and would kill the process (SIGBUS) later
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return array


@torch.inference_mode()
def collect_features(
    model: TrainedModel,
    pairs: Sequence[Pair],
    task: Task,
    folder: Path,
    *,
    pooling: Pooling = "mean",
    show_alive: Callable[[], None] = lambda: None,
) -> FeatureFiles:
    """Runs `pairs` along the path of `task` and writes the pooled features of every layer to `folder`.

    `show_alive` is called after each packed sequence.

    Raises:
        StorageError: `folder` cannot be written.
        SampleError: the pairs' codes are not of the model's image tokenizer.
    """
    make_folder(folder)
    files: FeatureFiles | None = None
    try:
        for sides, samples in _runs(model, pairs, task):
            arrays: dict[Side, list[np.ndarray]] = {}
            for numbers in _batches([len(sample.token_ids_L) for sample in samples]):
                packed = _packed([samples[number] for number in numbers], model)
                layers = _pooled_layers(model, packed, sides, len(numbers), pooling)
                if not files:
                    files = FeatureFiles(folder=folder, num_pairs=len(pairs), num_layers=len(layers[sides[0]]))
                if not arrays:
                    width = layers[sides[0]][0].shape[1]
                    arrays = {
                        side: [files._open(side, layer, width) for layer in range(len(layers[side]))] for side in sides
                    }
                for side in sides:
                    for array, pooled_SD in zip(arrays[side], layers[side], strict=True):
                        array[numbers] = pooled_SD.cpu().numpy()
                show_alive()
            for side in sides:
                for array in arrays[side]:
                    array.flush()  # type: ignore[attr-defined]  # a memmap
    except OSError as error:
        raise StorageError(f"{folder}: the features cannot be written ({error.strerror})") from error
    assert files
    return files


def _runs(
    model: TrainedModel, pairs: Sequence[Pair], task: Task
) -> Iterator[tuple[tuple[Side, ...], list[EncodedSample]]]:
    """Yields the samples to run, one per pair, and the sides whose features are read from them."""
    sizes = CodecSizes(codes_per_position=model.codec.codes_per_position, codebook_size=model.codec.codebook_size)

    def encoded(*, with_image: bool) -> list[EncodedSample]:
        samples = (pair.sample(task, with_image=with_image) for pair in pairs)
        return [encode_sample(sample, model.tokenizer, codec=sizes) for sample in samples]

    if task is Task.GENERATION:
        yield SIDES, encoded(with_image=True)
    else:
        yield ("image",), encoded(with_image=True)
        yield ("text",), encoded(with_image=False)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yields consecutive numbers of samples that fit into a packed sequence together."""
    batch: list[int] = []
    num_tokens = 0
    for number, length in enumerate(lengths):
        if batch and num_tokens + length > SEQUENCE_TOKENS:
            yield batch
            batch, num_tokens = [], 0
        batch.append(number)
        num_tokens += length
    yield batch


def _packed(samples: list[EncodedSample], model: TrainedModel) -> PackedSequence:
    num_tokens = sum(len(sample.token_ids_L) for sample in samples)
    return pack_sequence(samples, seq_len=num_tokens, padding_id=model.tokenizer.padding_id).to(model.device)


def _token_numbers(packed: PackedSequence, side: Side) -> Tensor:
    """Returns the positions of the side's tokens: image positions, or whatever is neither those nor their marks."""
    if side == "image":
        return packed.image_positions_I
    is_text_T = torch.ones_like(packed.token_ids_T, dtype=torch.bool)
    for positions in (packed.image_positions_I, packed.image_begins_M, packed.image_ends_M):
        is_text_T[positions] = False
    return is_text_T.nonzero().squeeze(1)


def _pooled_layers(
    model: TrainedModel, packed: PackedSequence, sides: Sequence[Side], num_samples: int, pooling: Pooling
) -> dict[Side, list[Tensor]]:
    """Returns each side's pooled features SD before the first layer and after each one, in fp32."""
    pools = {side: _pool(packed, side, num_samples, pooling) for side in sides}
    layers: dict[Side, list[Tensor]] = {side: [] for side in sides}

    def record(hidden_TD: Tensor) -> None:
        for side, pool in pools.items():
            layers[side].append(pool(hidden_TD))

    trunk, branch = model.model.trunk, model.model.branches[packed.task]
    assert trunk and isinstance(branch, Branch)
    with _outputs_of_layers(model.model, record):
        attend = PackedAttention(packed, model.model.kernel)
        branch.states(trunk(packed, attend), packed.positions_T, attend)
    return layers


def _pool(packed: PackedSequence, side: Side, num_samples: int, pooling: Pooling) -> Callable[[Tensor], Tensor]:
    """Returns the function from hidden states TD to a side's features SD in fp32."""
    tokens = _token_numbers(packed, side)
    sample_of_token = torch.searchsorted(packed.segment_starts_S1.long(), tokens, right=True) - 1
    counts_S = torch.bincount(sample_of_token, minlength=num_samples)
    last_S = tokens[counts_S.cumsum(0) - 1]

    def pool(hidden_TD: Tensor) -> Tensor:
        if pooling == "last":
            return hidden_TD[last_S].float()
        sums_SD = hidden_TD.new_zeros(num_samples, hidden_TD.shape[1], dtype=torch.float32)
        return sums_SD.index_add_(0, sample_of_token, hidden_TD[tokens].float()) / counts_S[:, None]

    return pool


@contextmanager
def _outputs_of_layers(model: nn.Module, record: Callable[[Tensor], None]) -> Iterator[None]:
    """Inside, `record` is called with the first layer's input and with the output of every layer, as they run."""
    handles, has_begun = [], False

    def before(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal has_begun
        if not has_begun:
            record(arguments[0])
            has_begun = True

    for stack in model.modules():
        if isinstance(stack, DecoderStack):
            for layer in stack.layers:
                handles.append(layer.register_forward_pre_hook(before))
                handles.append(layer.register_forward_hook(lambda _module, _arguments, output: record(output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
