"""Slots of sequences in a static key-value cache, and the step that runs the sequences of both tasks together.

    take -> run_prompts fills the slots -> Rows: one new token per sequence -> run_together -> states -> free

The slots in use are always the first ones: when a sequence ends, the last one moves to its slot. A step therefore reads
the cache in place. It reads as many positions as the longest sequence has, of the others through a mask.

Shapes: R rows, one per slot in use, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ufork.infer.cache import MASK_ALIGNMENT_TOKENS, Extend, KeyValueCache
from ufork.model.layers.attention import Attend
from ufork.model.unifork import Branch, UniFork
from ufork.vocabulary import Task


@dataclass(eq=False)
class Slot:
    """Where a sequence's keys and values are."""

    index: int
    num_tokens: int


class Slots:
    """The slots of one task's sequences."""

    def __init__(self, *, num_slots: int, capacity_tokens: int, device: torch.device):
        self.num_slots, self.capacity_tokens, self.device = num_slots, capacity_tokens, device
        self.clear()

    def clear(self) -> None:
        """Frees all slots, and drops what they hold."""
        self.cache = KeyValueCache(num_sequences=self.num_slots, capacity_tokens=self.capacity_tokens)
        self._used: list[Slot] = []

    @property
    def num_free(self) -> int:
        """Number of slots that can be taken."""
        return self.num_slots - len(self._used)

    def take(self, num_tokens: int) -> Slot:
        """Returns a slot for a prompt of `num_tokens`, which is to be run next."""
        assert self.num_free and num_tokens <= self.capacity_tokens
        self._used.append(Slot(len(self._used), num_tokens))
        return self._used[-1]

    def free(self, slot: Slot) -> None:
        """Frees a slot; the last sequence moves to it."""
        last = self._used.pop()
        if last is not slot:
            self.cache.move(last.index, slot.index, last.num_tokens)
            self._used[slot.index], last.index = last, slot.index

    def extend(self, dtype: torch.dtype) -> tuple[Tensor, Attend]:
        """Returns the positions R of the next token of each sequence, and their attention; counts these tokens."""
        lengths = [slot.num_tokens for slot in self._used]
        positions_R = torch.tensor(lengths, device=self.device)
        for slot in self._used:
            slot.num_tokens += 1
        num_tokens, is_masked = max(lengths) + 1, len(set(lengths)) > 1
        if self.device.type == "cuda" and is_masked:
            num_tokens += -num_tokens % MASK_ALIGNMENT_TOKENS
        attend = Extend(self.cache, positions_R, dtype, num_tokens=num_tokens, is_masked=is_masked)
        return positions_R, attend


@dataclass(frozen=True, kw_only=True)
class Rows:
    """One new token of each sequence of a task."""

    task: Task
    embedded_RD: Tensor
    positions_R: Tensor
    attend: Attend


def run_together(model: UniFork, tasks: Sequence[Rows]) -> list[Tensor]:
    """Returns the states RD of each task's rows, which pass the shared layers in the same products."""
    hidden = [model.trunk.first_states(rows.embedded_RD, rows.task, rows.positions_R, rows.attend) for rows in tasks]
    if len(tasks) == 1:
        positions, attend = tasks[0].positions_R, tasks[0].attend
    else:
        positions = torch.cat([rows.positions_R for rows in tasks])
        attend = _EachTask(tasks)
    hidden = model.trunk.stack(torch.cat(hidden), positions, attend).split([len(rows.embedded_RD) for rows in tasks])
    states = []
    for rows, hidden_RD in zip(tasks, hidden, strict=True):
        branch: Branch = model.branches[rows.task]  # type: ignore[assignment]
        states.append(branch.states(hidden_RD, rows.positions_R, rows.attend))
    return states


class _EachTask:
    """`Attend` of the rows of several tasks, laid end to end, each task to its own cache."""

    def __init__(self, tasks: Sequence[Rows]):
        self.attends = [rows.attend for rows in tasks]
        self.sizes = [len(rows.embedded_RD) for rows in tasks]

    def __call__(self, layer: int, query_RHW: Tensor, key_RGW: Tensor, value_RGW: Tensor) -> Tensor:
        """Returns the attention output RHW."""
        pieces = zip(self.attends, *(x.split(self.sizes) for x in (query_RHW, key_RGW, value_RGW)), strict=True)
        return torch.cat([attend(layer, *piece) for attend, *piece in pieces])
