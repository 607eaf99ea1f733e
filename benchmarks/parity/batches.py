"""What no golden tensor holds: gradients of the mixed batch, answers and drawings, by ufork and by the reference.

converted checkpoint or release's tensors, golden inputs -> values by the same names
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.parity.reference import Release
from benchmarks.parity.values import Values, mixed_rows
from ufork.convert.unifork import release_tensors
from ufork.infer.config import DrawConfig
from ufork.infer.model import VISION_FOLDER
from ufork.infer.padded_rows import IMAGE_PLACEHOLDER, PaddedRows, answer_rows, draw_rows, load_plain, run_rows
from ufork.model.config import ModelConfig
from ufork.model.unifork import UniFork
from ufork.vision.codec import ImageCodec
from ufork.vocabulary import Task

GRADIENTS = "mixed gradients"
GUIDANCE = (1.0, 3.0, 4.0)
END_ID, MAX_TOKENS = 2, 16
NUM_POSITIONS = 16
NEGATIVE_PROMPT_TOKENS = 9
"""Of the text in the first row of understanding."""
PADDING = -1


def ufork_values(folder: Path, golden: Values) -> Values:
    """Returns the values of the converted model in `folder`."""
    model, codec = load_plain(folder), ImageCodec.load(folder / VISION_FOLDER)
    rows = {task: mixed_rows(codec, golden, task) for task in Task}
    answers = answer_rows(model, rows[Task.UNDERSTANDING], end_id=END_ID, max_tokens=MAX_TOKENS)
    values = {
        GRADIENTS: joined_gradients(mixed_gradients(model, rows), model.config),
        "mixed answers": _tensor(answers),
    }
    texts, negative = _prompts(rows)
    prompts, unconditional = _left_padded(texts), _left_padded([negative] * len(texts))
    for guidance in GUIDANCE:
        config = DrawConfig(guidance=guidance, temperature=0.0)
        codes = draw_rows(model, prompts, config, num_positions=NUM_POSITIONS, unconditional=unconditional)
        values[f"mixed drawings, guidance {guidance:g}"] = codes
    return values


def reference_values(checkpoint: Path, folder: Path, golden: Values) -> Values:
    """Returns the values of the reference with the release's `checkpoint`; images are encoded as in `folder`."""
    release, codec = Release.read(checkpoint), ImageCodec.load(folder / VISION_FOLDER)
    rows = {task: mixed_rows(codec, golden, task) for task in Task}
    sum(release.loss(rows[task]) for task in Task).backward()
    gradients = {name: t.grad for name, t in release.tensors.items() if t.grad is not None}
    answers = release.answers(rows[Task.UNDERSTANDING], end_id=END_ID, max_tokens=MAX_TOKENS)
    values = {GRADIENTS: _joined(gradients), "mixed answers": _tensor(answers)}
    texts, negative = _prompts(rows)
    for guidance in GUIDANCE:
        codes = release.drawings(texts, [negative] * len(texts), guidance=guidance, num_positions=NUM_POSITIONS)
        values[f"mixed drawings, guidance {guidance:g}"] = codes
    return values


def mixed_gradients(model: UniFork, rows: dict[Task, PaddedRows]) -> dict[str, Tensor]:
    """Returns the gradients of the sum of both tasks' losses, by the names of the model's parameters."""
    sum(run_rows(model, rows[task]).loss for task in Task).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def joined_gradients(gradients: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """Returns gradients of whole parameters, in the order of the release's names, as one vector."""
    return _joined(release_tensors(gradients, config))


def _prompts(rows: dict[Task, PaddedRows]) -> tuple[list[Tensor], Tensor]:
    """Returns the texts of the rows of generation, and one that serves as the negative prompt."""
    of_generation, of_understanding = rows[Task.GENERATION], rows[Task.UNDERSTANDING]
    is_text = of_generation.mask_RT & (of_generation.token_ids_RT != IMAGE_PLACEHOLDER)
    texts = [ids[kept] for ids, kept in zip(of_generation.token_ids_RT, is_text, strict=True)]
    first = of_understanding.token_ids_RT[0]
    return texts, first[first != IMAGE_PLACEHOLDER][:NEGATIVE_PROMPT_TOKENS]


def _left_padded(texts: list[Tensor]) -> PaddedRows:
    ids = pad_sequence(texts, batch_first=True, padding_value=PADDING, padding_side="left")
    return PaddedRows(task=Task.GENERATION, token_ids_RT=ids, mask_RT=ids != PADDING)


def _joined(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


def _tensor(answers: list[list[int]]) -> Tensor:
    return torch.tensor([answer + [PADDING] * (MAX_TOKENS - len(answer)) for answer in answers])
