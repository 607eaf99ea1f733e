"""Runs a batch of sequences along the path of one task: all prompts at once, then one token each per step.

    prompts -> start -> last states BD;  embedded tokens BD -> step -> states BD

Shapes: B sequences, T tokens of all prompts together, D width.
"""

import dataclasses

import torch
from torch import Tensor

from ufork.data.packing import pack_sequence
from ufork.data.prompts import EncodedSample
from ufork.infer.cache import MASK_ALIGNMENT_TOKENS, Extend, KeyValueCache, Prefill
from ufork.model.unifork import Branch, UniFork
from ufork.vocabulary import Task


def run_prompts(
    model: UniFork,
    prompts: list[EncodedSample],
    cache: KeyValueCache,
    *,
    image_is_open: bool,
    sequences_B: Tensor | None = None,
) -> Tensor:
    """Runs prompts of one task as one packed sequence, fills `cache`, and returns the state BD of each last token.

    Args:
        model: on the device of `cache`.
        prompts: one per sequence.
        cache: of the task's sequences.
        image_is_open: whether the prompts end with a begin-of-image mark whose image follows.
        sequences_B: the sequence of the cache that each prompt begins; the first ones by default.
    """
    packed = pack_sequence(prompts, seq_len=sum(len(prompt.token_ids_L) for prompt in prompts), padding_id=0)
    if image_is_open:
        packed = dataclasses.replace(packed, image_ends_M=packed.image_ends_M[:0])
    packed = packed.to(model.trunk.token_embedding.weight.device)
    attend = Prefill(cache, packed, model.kernel, sequences_B)
    hidden_TD = model.trunk.states(model.trunk.embed(packed), packed.task, packed.positions_T, attend)
    branch: Branch = model.branches[packed.task]  # type: ignore[assignment]
    states_TD = branch.states(hidden_TD, packed.positions_T, attend)
    return states_TD[packed.segment_starts_S1[1:].long() - 1]


class SharedPrompt:
    """A prompt that many sequences begin with: run once, its keys and values are copied to each of them."""

    def __init__(self, model: UniFork, prompt: EncodedSample, *, image_is_open: bool):
        """Runs the prompt; arguments as for `run_prompts`."""
        self.num_tokens = len(prompt.token_ids_L)
        self._cache = KeyValueCache(num_sequences=1, capacity_tokens=self.num_tokens)
        self._state_1D = run_prompts(model, [prompt], self._cache, image_is_open=image_is_open)

    def begin(self, cache: KeyValueCache, sequences_B: Tensor) -> Tensor:
        """Begins the sequences `sequences_B` of `cache`; returns the state BD of their last tokens."""
        cache.copy_from(self._cache, sequences_B)
        return self._state_1D.expand(len(sequences_B), -1)


class Sequences:
    """Key-value cache and current length of each sequence.

    With `static`, `step` reads and writes tensors only, always the same ones, and depends on no state of Python's: it
    can be replayed as a CUDA graph (`ufork/infer/steps.py`).
    """

    def __init__(self, model: UniFork, task: Task, *, device: torch.device, static: bool = False):
        self.model, self.task, self.device, self.static = model, task, device, static

    def start(self, prompts: list[EncodedSample], *, num_new_tokens: int, image_is_open: bool) -> Tensor:
        """Runs the prompts and returns the state BD of each one's last token.

        Args:
            prompts: one per sequence.
            num_new_tokens: number of steps that may follow.
            image_is_open: whether the prompts end with a begin-of-image mark whose image follows.
        """
        lengths = [len(prompt.token_ids_L) for prompt in prompts]
        capacity_tokens = max(lengths) + num_new_tokens
        if self.static:
            capacity_tokens += -capacity_tokens % MASK_ALIGNMENT_TOKENS
        self.cache = KeyValueCache(num_sequences=len(prompts), capacity_tokens=capacity_tokens)
        self.positions_B = torch.tensor(lengths, device=self.device)
        self.num_tokens = capacity_tokens if self.static else max(lengths)
        self.is_masked = self.static or len(set(lengths)) > 1
        return run_prompts(self.model, prompts, self.cache, image_is_open=image_is_open)

    def step(self, entering_BD: Tensor) -> Tensor:
        """Appends one embedded token to each sequence and returns its state BD."""
        if not self.static:
            self.num_tokens += 1
        attend = Extend(
            self.cache, self.positions_B, entering_BD.dtype, num_tokens=self.num_tokens, is_masked=self.is_masked
        )
        hidden_BD = self.model.trunk.states(entering_BD, self.task, self.positions_B, attend)
        branch: Branch = self.model.branches[self.task]  # type: ignore[assignment]
        states_BD = branch.states(hidden_BD, self.positions_B, attend)
        self.positions_B += 1
        return states_BD
