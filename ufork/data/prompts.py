"""A sample as the token sequence of its task: text, image marks and image positions, and the targets.

    generation      <|im_start|>USER: {prompt} ASSISTANT: [begin] image [end]
    understanding   [begin] image [end] USER: {question} ASSISTANT: {answer}<|im_end|> ...

The wording is that of UniFork's release (spec, section 4). Prompt and answer are tokenised separately, so that no merge
crosses the boundary and the first token of an answer is always a target; the release tokenises them together
(`compatibility`).
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from ufork.data.config import RELEASE_LOSS_POSITIONS, Compatibility
from ufork.data.shards.sample import Sample
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import SampleError
from ufork.vocabulary import DROPPED_PROMPT, IGNORED_LABEL, TURN_END, TURN_START, Prompt, Task

MAX_CHARS_PER_TOKEN = 64
"""A text with more characters than this per token of the packed sequence is skipped without being tokenised, which can
take many seconds. Text has 4 to 5 characters a token; only runs of blanks or of one letter come near the limit."""


@dataclass(frozen=True, kw_only=True)
class CodecSizes:
    """Sizes of an image tokenizer, which all its codes have in common."""

    codes_per_position: int
    codebook_size: int
    """Codes are below this number."""


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """One sample, ready to be packed. L is its length, I its image positions, C codes per position."""

    id: str
    task: Task
    token_ids_L: np.ndarray
    """int64; the padding token where the image stands."""
    labels_L: np.ndarray
    """int64; the text token that follows where it is to be predicted, else IGNORED_LABEL."""
    image_begin: int | None
    """Position of the begin-of-image mark; the I image positions follow it, then the end mark."""
    codes_IC: np.ndarray
    """int64; empty without an image."""


def generation_prompt(caption: str) -> Prompt:
    """What precedes an image to draw."""
    return (TURN_START, f"USER: {caption} ASSISTANT: ")


def dropped_prompt() -> Prompt:
    """Replaces a prompt for the unconditional model of classifier-free guidance, in training and sampling."""
    return (TURN_START, "USER: ", DROPPED_PROMPT, ". ASSISTANT: ")


def question_prompt(question: str) -> str:
    """The text before an answer."""
    return f" USER: {question} ASSISTANT: "


def drops_prompt(sample_id: str, *, epoch: int, seed: int, share: float) -> bool:
    """Whether this sample's prompt is dropped in this epoch; does not depend on the rank that trains on it."""
    return _hashed(f"{seed}/{epoch}/{sample_id}") < share * 2**64


def sequence_seed(seed: int, task: Task, lane: int, num_samples_taken: int) -> int:
    """Seed of a packed sequence's dropout, 62 bits; follows from its position in its lane, not from the ranks."""
    return _hashed(f"{seed}/{task}/{lane}/{num_samples_taken}") >> 2


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def encode_sample(
    sample: Sample,
    tokenizer: TextTokenizer,
    *,
    codec: CodecSizes,
    seq_len: int | None = None,
    drop_prompt: bool = False,
    compatibility: Compatibility = "none",
) -> EncodedSample:
    """Lays out one sample.

    Args:
        sample: a sample as a shard holds it, not checked yet.
        tokenizer: text tokenizer.
        codec: sizes of the image tokenizer, which the codes must fit.
        seq_len: largest number of tokens; None for any.
        drop_prompt: whether the prompt of a generation sample is replaced by the guidance null.
        compatibility: `DataConfig.compatibility`.

    Raises:
        SampleError: it has nothing to predict, no codes for its image, codes that are not `codec`'s, or is too long.
    """
    _check_codes(sample, codec)
    layout = _Layout(tokenizer.padding_id)
    if sample.task is Task.GENERATION:
        if sample.codes is None or not sample.prompt.strip():
            raise SampleError("a generation sample needs an image and a prompt that is not empty", sample=sample.id)
        prompt = dropped_prompt() if drop_prompt else generation_prompt(sample.prompt)
        _check_text(sample, sum(map(len, prompt)), seq_len)
        layout.add_text(tokenizer.encode(prompt))
        codes_IC = sample.codes.reshape(-1, sample.codes.shape[-1])
        layout.add_image(codes_IC[:RELEASE_LOSS_POSITIONS] if compatibility == "release" else codes_IC)
    else:
        if not any(answer.strip() for _, answer in sample.turns):
            raise SampleError("an understanding sample needs an answer that is not empty", sample=sample.id)
        texts = [(question_prompt(question), answer) for question, answer in sample.turns]
        _check_text(sample, sum(len(question) + len(answer) for question, answer in texts), seq_len)
        if sample.codes is not None:
            layout.add_image(sample.codes)
        for question, answer in texts:
            before, targets = tokenizer.encode(question), tokenizer.encode((answer, TURN_END))
            if compatibility == "release":
                together = tokenizer.encode((question + answer, TURN_END))
                before, targets = together[: len(before)], together[len(before) :]
            layout.add_text(before)
            layout.add_text(targets, is_target=True)
    if seq_len is not None and len(layout.token_ids) > seq_len:
        raise _too_long(sample, f"{len(layout.token_ids)} tokens", seq_len)
    return layout.finish(sample)


def _check_codes(sample: Sample, codec: CodecSizes) -> None:
    if sample.codes is None:
        if sample.image is not None:
            raise SampleError(
                "its image has no codes; run `ufork tokenizer encode` on its shards first", sample=sample.id
            )
        return
    depth, largest = sample.codes.shape[-1], int(sample.codes.max())
    if depth != codec.codes_per_position or largest >= codec.codebook_size:
        raise SampleError(
            f"its codes are not those of the image tokenizer ({codec.codes_per_position} per position, each below"
            f" {codec.codebook_size}); encode its shards with the run's image tokenizer",
            detail=f"found {depth} per position, up to {largest}",
            sample=sample.id,
        )


def _check_text(sample: Sample, num_chars: int, seq_len: int | None) -> None:
    if seq_len is not None and num_chars > MAX_CHARS_PER_TOKEN * seq_len:
        raise _too_long(sample, f"{num_chars} characters", seq_len)


def _too_long(sample: Sample, detail: str, seq_len: int) -> SampleError:
    return SampleError(f"does not fit into data.seq_len={seq_len}", detail=detail, sample=sample.id)


class _Layout:
    """A token sequence that grows by texts and images."""

    def __init__(self, padding_id: int):
        self.padding_id = padding_id
        self.token_ids: list[int] = []
        self.is_target: list[bool] = []
        self.image_begin: int | None = None
        self.codes_IC = np.zeros((0, 1), np.int64)

    def add_text(self, token_ids: list[int], *, is_target: bool = False) -> None:
        self.token_ids += token_ids
        self.is_target += [is_target] * len(token_ids)

    def add_image(self, codes_YXC: np.ndarray) -> None:
        self.image_begin = len(self.token_ids)
        self.codes_IC = codes_YXC.reshape(-1, codes_YXC.shape[-1]).astype(np.int64)
        self.add_text([self.padding_id] * (len(self.codes_IC) + 2))

    def finish(self, sample: Sample) -> EncodedSample:
        token_ids_L = np.array(self.token_ids, np.int64)
        labels_L = np.full(len(token_ids_L), IGNORED_LABEL, np.int64)
        targets = np.flatnonzero(self.is_target)
        targets = targets[targets > 0]  # no position precedes the first token, so none predicts it
        labels_L[targets - 1] = token_ids_L[targets]
        return EncodedSample(
            id=sample.id,
            task=sample.task,
            token_ids_L=token_ids_L,
            labels_L=labels_L,
            image_begin=self.image_begin,
            codes_IC=self.codes_IC,
        )
