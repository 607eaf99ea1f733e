"""Runs a model on padded rows of token ids, as UniFork's release batches them, to compare the two.

    rows of one task -> packed without padding -> trunk -> branch -> hidden states, logits and loss, in rows again

Everything from `run_rows` is differentiable; a model from `load_plain` has no fused layers. The release pads the rows
of each task on the right, and those to decode on the left. Positions count from 0 in every row here, and over its
padding in the release on the left, which changes nothing: rotary embeddings depend on distances only.

Shapes: R rows, T tokens of the longest row with its image, D hidden size, N positions of an image, C codes per
position, K codebook size, V vocabulary, L tokens of one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ufork.data.config import RELEASE_LOSS_POSITIONS, Compatibility
from ufork.data.packing import pack_sequence
from ufork.data.prompts import EncodedSample
from ufork.infer.answer import Answers
from ufork.infer.config import AnswerConfig, DrawConfig
from ufork.infer.draw import draw_sequences, open_image
from ufork.infer.model import VISION_FOLDER
from ufork.infer.steps import EagerSteps
from ufork.model.layers.attention import PackedAttention
from ufork.model.layers.attention_kernels import sdpa_attention
from ufork.model.unifork import Branch, GenerationBranch, UnderstandingBranch, UniFork
from ufork.model.weights import allocate_model, load_weights, put_weights
from ufork.vision.codec import ImageCodec
from ufork.vocabulary import IGNORED_LABEL, PackedSequence, Task

IMAGE_PLACEHOLDER = -200
"""Token id where an image stands: it becomes [begin mark, N positions, end mark]."""


@dataclass(frozen=True, kw_only=True)
class PaddedRows:
    """Rows of one task, padded on either side; at most one image a row."""

    task: Task
    token_ids_RT: Tensor
    """int64; IMAGE_PLACEHOLDER where the image stands."""
    mask_RT: Tensor
    """bool; False at padding."""
    labels_RT: Tensor | None = None
    """int64; a token's own id where it is to be predicted, else IGNORED_LABEL. Generation needs none."""
    codes_RNC: Tensor | None = None
    """int64; codes of each row's image, not read for rows without one."""

    def samples(self) -> list[EncodedSample]:
        """Returns each row without padding."""
        return [self._sample(row) for row in range(len(self.token_ids_RT))]

    def samples_to_draw(self) -> list[EncodedSample]:
        """Returns each row without padding and placeholder, with a begin-of-image mark at its end."""
        rows = zip(self.token_ids_RT.cpu(), self.mask_RT.bool().cpu(), strict=True)
        return [
            open_image(token_ids[mask & (token_ids != IMAGE_PLACEHOLDER)].tolist(), padding_id=0)
            for token_ids, mask in rows
        ]

    def _sample(self, row: int) -> EncodedSample:
        kept = self.mask_RT[row].bool().cpu()
        token_ids = self.token_ids_RT[row].cpu()[kept]
        labels = torch.full_like(token_ids, IGNORED_LABEL)
        if self.labels_RT is not None and self.task is Task.UNDERSTANDING:
            labels = self.labels_RT[row].cpu()[kept]
        codes, begin = np.zeros((0, 1), np.int64), None
        if found := (token_ids == IMAGE_PLACEHOLDER).nonzero().flatten().tolist():
            assert len(found) == 1 and self.codes_RNC is not None, "a row has one image at most, with its codes"
            begin, codes = found[0], self.codes_RNC[row].cpu().numpy()
            image = torch.zeros(len(codes) + 2, dtype=torch.int64)
            token_ids = torch.cat((token_ids[:begin], image, token_ids[begin + 1 :]))
            labels = torch.cat((labels[:begin], image + IGNORED_LABEL, labels[begin + 1 :]))
        shifted = torch.cat((labels[1:], torch.tensor([IGNORED_LABEL])))
        return EncodedSample(
            id=f"row {row}",
            task=self.task,
            token_ids_L=token_ids.numpy(),
            labels_L=shifted.numpy(),
            image_begin=begin,
            codes_IC=codes,
        )


@dataclass(frozen=True, kw_only=True)
class RowsResult:
    """What a model computes on `PaddedRows`; rows are padded on the right with zeros."""

    mask_RT: Tensor
    """bool; False at padding."""
    inputs_RTD: Tensor
    """Inputs of the first layer."""
    fork_RTD: Tensor
    """Hidden states at the fork, the outputs of the trunk."""
    final_RTD: Tensor
    """Outputs of the branch's norm."""
    logits: Tensor
    """Of understanding RTV, at every position; of generation RNCK, teacher-forced over depth: the codes of a position
    are predicted one position before it, those of the first by the begin mark."""
    loss: Tensor
    """Mean cross-entropy over the targets, a scalar in fp32, computed as in training and not from `logits`."""
    num_targets: int
    """Text tokens, or codes over all depths."""


def run_rows(
    model: UniFork,
    rows: PaddedRows,
    *,
    compatibility: Compatibility = "none",
    release_loss_positions: int = RELEASE_LOSS_POSITIONS,
) -> RowsResult:
    """Computes hidden states, logits and loss of rows of one task.

    Args:
        model: with a trunk and the task's branch.
        rows: rows of the task.
        compatibility: `release` takes the loss of generation over the first positions of each image only.
        release_loss_positions: how many those are.
    """
    samples = rows.samples()
    lengths = [len(sample.token_ids_L) for sample in samples]
    packed = pack_sequence(samples, seq_len=sum(lengths), padding_id=0).to(model.trunk.token_embedding.weight.device)
    attend = PackedAttention(packed, model.kernel)
    inputs_TD = model.trunk.embed(packed)
    fork_TD = model.trunk.states(inputs_TD, rows.task, packed.positions_T, attend)
    branch: Branch = model.branches[rows.task]  # type: ignore[assignment]
    final_TD = branch.states(fork_TD, packed.positions_T, attend)
    if isinstance(branch, GenerationBranch):
        counted = release_loss_positions if compatibility == "release" else None
        logits, loss, num_targets = _codes_of(branch, final_TD, packed, counted)
    else:
        assert isinstance(branch, UnderstandingBranch)
        logits, num_targets = _in_rows(branch.head.logits(final_TD), lengths), packed.num_targets
        loss = branch.head(final_TD, packed.labels_T, num_targets) / max(num_targets, 1)
    return RowsResult(
        mask_RT=_in_rows(torch.ones_like(packed.positions_T, dtype=torch.bool), lengths),
        inputs_RTD=_in_rows(inputs_TD, lengths),
        fork_RTD=_in_rows(fork_TD, lengths),
        final_RTD=_in_rows(final_TD, lengths),
        logits=logits,
        loss=loss,
        num_targets=num_targets,
    )


def _in_rows(values_TX: Tensor, lengths: list[int]) -> Tensor:
    return pad_sequence(values_TX.split(lengths), batch_first=True)


def _codes_of(
    branch: GenerationBranch, final_TD: Tensor, packed: PackedSequence, counted: int | None
) -> tuple[Tensor, Tensor, int]:
    """Returns logits RNCK, the mean loss over the first `counted` positions of each image, and its targets."""
    num_rows = len(packed.image_begins_M)
    states_ID = final_TD.index_select(0, packed.image_positions_I - 1)
    sums_ICE = branch.code_embedding(packed.codes_IC)
    logits_ICK = branch.head.out(branch.head.states(states_ID, sums_ICE, packed.seed))
    kept = (x.unflatten(0, (num_rows, -1))[:, :counted].flatten(0, 1) for x in (states_ID, sums_ICE, packed.codes_IC))
    states_ID, sums_ICE, codes_IC = kept
    loss = branch.head(states_ID, sums_ICE, codes_IC, packed.seed) / max(codes_IC.numel(), 1)
    return logits_ICK.unflatten(0, (num_rows, -1)), loss, codes_IC.numel()


@torch.inference_mode()
def answer_rows(model: UniFork, rows: PaddedRows, *, end_id: int, max_tokens: int) -> list[list[int]]:
    """Continues rows of understanding greedily; returns new tokens, up to and with `end_id` or `max_tokens` of them."""
    _require_whole(model)
    steps = EagerSteps()
    samples, config = rows.samples(), AnswerConfig(max_tokens=max_tokens)
    answers = Answers(model, samples, config, turn_end_id=end_id, seeds=range(len(samples)), steps=steps)
    steps.run(answers.step, max_tokens - 1, answers.have_ended)
    return [tokens[: tokens.index(end_id) + 1] if end_id in tokens else tokens for tokens in answers.tokens()]


def draw_rows(
    model: UniFork,
    rows: PaddedRows,
    config: DrawConfig,
    *,
    num_positions: int,
    unconditional: PaddedRows | None = None,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Draws the codes RNC of an image after each row; a placeholder that ends a row is not needed.

    Args:
        model: with a trunk and the generation branch.
        rows: prompts.
        config: how codes are sampled; a `temperature` of 0 takes the most likely ones.
        num_positions: positions of an image.
        unconditional: as many rows to guide away from: the guidance null, or the release's negative prompt. Needed
            with guidance; without it (1) they do not matter and are not run.
        seeds: one per row; 0, 1, ... by default.
    """
    _require_whole(model)
    prompts = rows.samples_to_draw()
    if config.guidance != 1:
        assert unconditional is not None, "guidance needs unconditional rows"
        prompts += unconditional.samples_to_draw()
    seeds = range(len(rows.token_ids_RT)) if seeds is None else seeds
    return draw_sequences(model, prompts, config, num_positions=num_positions, seeds=seeds, steps=EagerSteps())


def _require_whole(model: UniFork) -> None:
    whole = len(model.trunk.token_embedding.weight) == model.dimensions.vocab_size
    assert whole, "a tensor-parallel rank has the logits of a part of the vocabulary only; decode with whole weights"


def load_plain(folder: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> UniFork:
    """Reads weights and the image tokenizer's codebook; a text tokenizer is not needed.

    Returns:
        a model in evaluation with plain layers and whole weights, whose parameters take gradients.

    Raises:
        CheckpointError: weights are missing or damaged.
        TokenizerError: there is no image tokenizer.
    """
    weights, config = load_weights(folder)
    model = allocate_model(config, sdpa_attention, device=torch.device(device), dtype=dtype)
    put_weights(model, weights, origin=str(folder))
    model.set_codebook(ImageCodec.load(folder / VISION_FOLDER).codebook)
    return model.eval()
