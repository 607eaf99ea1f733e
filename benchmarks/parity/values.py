"""What ufork computes for the golden inputs, and how far it is from what the release computed.

converted checkpoint, golden inputs -> values by the names of the golden tensors -> largest differences -> table
"""

import io
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ufork.infer.model import VISION_FOLDER
from ufork.infer.padded_rows import PaddedRows, load_plain, run_rows
from ufork.model.unifork import GenerationBranch, UniFork
from ufork.vision.codec import ImageCodec
from ufork.vision.images import decode_image
from ufork.vision.patches import from_bytes
from ufork.vision.vila_u.tokenizer import VilaU
from ufork.vocabulary import Task

ALLOWED = 1e-5
ALLOWED_PIXEL = 1e-3
"""Of 255."""
PIXELS = ("decoded", "decoded_hi")
PREPARED = (
    ("und384_off12_stride24", 384, Task.UNDERSTANDING, 24),
    ("gen384_off12_stride24", 384, Task.GENERATION, 24),
    ("und32", 32, Task.UNDERSTANDING, 1),
)
"""Of a prepared picture: its golden tensor's name, its side, its task and its stride."""

Values = dict[str, Tensor]
"""Tensors by the golden file's name and their own, "und trunk_hidden"."""


@dataclass(frozen=True)
class Difference:
    """Of one tensor."""

    name: str
    largest: float
    """Largest absolute difference; of codes, the number of those that differ."""
    allowed: float

    @property
    def is_allowed(self) -> bool:
        """Whether ufork agrees with the release."""
        return self.largest <= self.allowed


def differences(found: Values, golden: Values) -> list[Difference]:
    """Compares what ufork computed with the golden tensors of the same names; rows only where they are not padding."""
    result = []
    for name, value in found.items():
        expected = golden[name]
        mask = golden.get(f"{name.partition(' ')[0]} attention_mask")
        if mask is not None and value.dim() > 1 and value.shape[1] == mask.shape[1]:
            mask = mask[: len(value)]
            value, expected = value[mask], expected[mask]
        if value.dtype == torch.int64:
            result.append(Difference(name, float((value != expected).sum()), 0))
            continue
        is_pixels = name.partition(" ")[2] in PIXELS
        largest = float((value.double() - expected.double()).abs().max())
        result.append(Difference(name, largest, ALLOWED_PIXEL if is_pixels else ALLOWED))
    return result


def read_golden(folder: Path) -> Values:
    """Returns all golden tensors; pixels in 0..255."""
    files = ("tokenizer", "preprocess", "mixed_inputs", "und", "gen", "rq_head")
    values = {f"{file} {name}": t for file in files for name, t in load_file(folder / f"{file}.safetensors").items()}
    return {name: _pixels(t) if name.partition(" ")[2] in PIXELS else t for name, t in values.items()}


def prepared_values(golden: Values) -> Values:
    """Returns the golden pictures as they are prepared for either task, some at every `stride`th pixel only."""
    values = {}
    for picture in ("wide", "tall"):
        file = io.BytesIO()
        Image.fromarray(golden[f"preprocess {picture}_u8"].numpy()).save(file, "PNG")
        for name, size_px, task, stride in PREPARED:
            pixels = from_bytes(torch.from_numpy(decode_image(file.getvalue(), size_px=size_px, purpose=task)))
            sampled = pixels[stride // 2 :: stride, stride // 2 :: stride]
            values[f"preprocess {picture}_{name}"] = sampled.permute(2, 0, 1)
    return values


def tokenizer_values(codec: ImageCodec, golden: Values) -> Values:
    """Returns what the image tokenizer computes for images of its own size and of one that is interpolated (`hi`)."""
    network = codec.model
    assert isinstance(network, VilaU)
    values = {}
    for size in ("", "_hi"):
        features = network.features(golden[f"tokenizer image{size}"])
        quantized = network.quantizer(features)
        values |= {
            f"tokenizer pre_quant{size}": features,
            f"tokenizer codes{size}": quantized.codes,
            f"tokenizer z_q{size}": quantized.features,
            f"tokenizer code_emb_sum{size}": network.quantizer.embed(quantized.codes).flatten(1, 2),
            f"tokenizer decoded{size}": _pixels(network.decode(quantized.codes)),
        }
    return values


def model_values(model: UniFork, codec: ImageCodec, golden: Values) -> Values:
    """Returns what the model computes for the mixed batch, and its RQ head for given states."""
    values = {}
    for task, file in ((Task.UNDERSTANDING, "und"), (Task.GENERATION, "gen")):
        result = run_rows(model, mixed_rows(codec, golden, task))
        values |= {
            f"{file} inputs_embeds": result.inputs_RTD,
            f"{file} trunk_hidden": result.fork_RTD,
            f"{file} final_hidden": result.final_RTD,
            f"{file} loss": result.loss,
        }
        if task is Task.GENERATION:
            values["gen logits"] = result.logits
        else:
            values["und logits_row0"] = result.logits[:1]
            values["und num_target_tokens"] = torch.tensor(result.num_targets)
    branch = model.branches[Task.GENERATION]
    assert isinstance(branch, GenerationBranch)
    states, codes = golden["rq_head hidden"], golden["rq_head codes"]
    sums = branch.code_embedding(codes.flatten(0, 1))
    logits = branch.head.out(branch.head.states(states.flatten(0, 1), sums))
    return values | {"rq_head logits": logits.unflatten(0, codes.shape[:2])}


def mixed_rows(codec: ImageCodec, golden: Values, task: Task) -> PaddedRows:
    """Returns the rows of `task` of the golden mixed batch, with their images encoded."""
    of_task = golden["mixed_inputs is_gen"] == (task is Task.GENERATION)
    images = golden["mixed_inputs images_gen" if task is Task.GENERATION else "mixed_inputs images_und"]
    network = codec.model
    assert isinstance(network, VilaU)
    return PaddedRows(
        task=task,
        token_ids_RT=golden["mixed_inputs input_ids"][of_task],
        mask_RT=golden["mixed_inputs attention_mask"][of_task],
        labels_RT=golden["mixed_inputs labels"][of_task],
        codes_RNC=network.encode(images).flatten(1, 2),
    )


@torch.no_grad()
def all_values(folder: Path, golden: Values) -> Values:
    """Returns the values of the converted model in `folder`, on one process."""
    codec = ImageCodec.load(folder / VISION_FOLDER)
    tokenizer = {**prepared_values(golden), **tokenizer_values(codec, golden)}
    return {**tokenizer, **model_values(load_plain(folder), codec, golden)}


def table(found: list[Difference]) -> str:
    """Returns the differences as a Markdown table."""
    lines = [f"| {one.name} | {one.largest:.1e} | {one.allowed:.0e} |" for one in found]
    return "\n".join(("| tensor | largest difference | allowed |", "|---|---|---|", *lines))


def _pixels(values: Tensor) -> Tensor:
    return ((values + 1) * 127.5).clamp(0, 255)
