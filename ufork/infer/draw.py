"""Draws image codes from prompts.

    prompts and guidance nulls -> prefill -> per position: head draws the depths in turn -> projector -> body step

Shapes: B prompts, R sequences (2B with guidance, conditional first), N positions, C codes per position, E features of a
code.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ufork.data.prompts import EncodedSample, dropped_prompt, generation_prompt
from ufork.data.text_tokenizer import TextTokenizer
from ufork.infer.config import DrawConfig
from ufork.infer.sampling import Sampling, guided, sample, uniform_numbers
from ufork.infer.sequences import Sequences
from ufork.infer.steps import Steps, steps_on
from ufork.model.unifork import GenerationBranch, UniFork
from ufork.vocabulary import IGNORED_LABEL, Task


@torch.inference_mode()
def draw_codes(
    model: UniFork,
    tokenizer: TextTokenizer,
    prompts: Sequence[str],
    config: DrawConfig,
    *,
    num_positions: int,
    seeds: Sequence[int],
    steps: Steps | None = None,
) -> Tensor:
    """Returns codes BNC for `prompts`, each from its own seed, drawn on the model's device.

    Args:
        model: with a generation branch.
        tokenizer: of the model.
        prompts: texts.
        config: how codes are sampled.
        num_positions: positions of an image.
        seeds: one per prompt.
        steps: how the steps from position to position are run; the device's fastest way by default.
    """
    sequences = prompt_sequences(prompts, tokenizer, guidance=config.guidance)
    return draw_sequences(model, sequences, config, num_positions=num_positions, seeds=seeds, steps=steps)


@torch.inference_mode()
def draw_sequences(
    model: UniFork,
    sequences: list[EncodedSample],
    config: DrawConfig,
    *,
    num_positions: int,
    seeds: Sequence[int],
    steps: Steps | None = None,
) -> Tensor:
    """Returns codes BNC drawn after `sequences`; arguments as for `draw_codes` and `Drawing`."""
    steps = steps or steps_on(model.trunk.token_embedding.weight.device)
    drawing = Drawing(model, sequences, config, num_positions=num_positions, seeds=seeds, steps=steps)
    steps.run(drawing.step, num_positions - 1)
    return drawing.codes_BNC


class Drawing:
    """A batch of images under way, in tensors that keep their addresses; its first position is drawn at once.

    Each `step` draws one more position. It is a function of these tensors alone if the steps are static.
    """

    def __init__(
        self,
        model: UniFork,
        sequences: list[EncodedSample],
        config: DrawConfig,
        *,
        num_positions: int,
        seeds: Sequence[int],
        steps: Steps,
    ):
        """Runs the prompts.

        Args:
            model: with a generation branch.
            sequences: one per seed, and with guidance as many unconditional ones after them; each ends with a
                begin-of-image mark (`open_image`).
            config: how codes are sampled.
            num_positions: positions of an image.
            seeds: one per image.
            steps: how steps are run.
        """
        device = model.trunk.token_embedding.weight.device
        self.model, self.config = model, config
        self.sampling = Sampling.of([config], device)
        self.branch: GenerationBranch = model.branches[Task.GENERATION]  # type: ignore[assignment]
        codes_per_position = len(self.branch.head.depth_positions_CP)
        self.uniform_BNC = uniform_numbers(seeds, num_positions, codes_per_position).to(device)
        self.codes_BNC = torch.zeros_like(self.uniform_BNC, dtype=torch.long)
        self.position_1 = torch.zeros(1, dtype=torch.long, device=device)
        self.no_marks = torch.empty(0, dtype=torch.long, device=device)
        self.prompts_R = torch.arange(len(seeds), device=device).repeat(len(sequences) // len(seeds))
        self.sequences = Sequences(model, Task.GENERATION, device=device, static=steps.is_static)
        states_RD = self.sequences.start(sequences, num_new_tokens=num_positions, image_is_open=True)
        self.entering_RD = torch.zeros_like(states_RD)
        self._draw(states_RD)

    def step(self) -> None:
        """Draws the next position."""
        self._draw(self.sequences.step(self.entering_RD))

    def _draw(self, states_RD: Tensor) -> None:
        uniform_BC = self.uniform_BNC.index_select(1, self.position_1).squeeze(1)

        def choose(logits_RK: Tensor, depth: int) -> Tensor:
            logits_BK = guided(logits_RK, self.config.guidance, len(uniform_BC))
            return sample(logits_BK, self.sampling, uniform_BC[:, depth])

        codes_BC, sums_BE = draw_position(self.branch, states_RD, self.prompts_R, choose)
        self.codes_BNC.index_copy_(1, self.position_1, codes_BC[:, None])
        self.position_1 += 1
        entering_BD, _ = self.model.trunk.projector(sums_BE, self.no_marks)
        self.entering_RD.copy_(entering_BD.index_select(0, self.prompts_R))


def draw_position(
    branch: GenerationBranch, states_RD: Tensor, prompts_R: Tensor, choose: Callable[[Tensor, int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns codes BC of one position, and the sum BE of their embeddings.

    Args:
        branch: the generation branch.
        states_RD: of the sequences.
        prompts_R: number of the prompt of each sequence, whose codes it reads.
        choose: maps logits RK and their depth to codes B, one per prompt.
    """
    codebook_KE = branch.code_embedding.codebook_KE
    past: list[list[Tensor]] = [[] for _ in branch.head.blocks]
    entering, codes, sums_BE = states_RD, [], torch.zeros_like(codebook_KE[:1])
    for depth in range(len(branch.head.depth_positions_CP)):
        codes.append(choose(branch.head.next_logits(entering, depth, past), depth))
        sums_BE = sums_BE + codebook_KE[codes[-1]]
        entering = sums_BE.index_select(0, prompts_R)
    return torch.stack(codes, dim=1), sums_BE


def prompt_sequences(prompts: Sequence[str], tokenizer: TextTokenizer, *, guidance: float) -> list[EncodedSample]:
    """Returns the sequences of `prompts`, and with guidance as many of the guidance null."""
    wanted = [generation_prompt(prompt) for prompt in prompts]
    if guidance != 1:
        wanted += [dropped_prompt()] * len(prompts)
    return [open_image(tokenizer.encode(prompt), padding_id=tokenizer.padding_id) for prompt in wanted]


def open_image(token_ids: Sequence[int], *, padding_id: int) -> EncodedSample:
    """Returns a prompt's tokens followed by the begin-of-image mark."""
    return EncodedSample(
        id="",
        task=Task.GENERATION,
        token_ids_L=np.array([*token_ids, padding_id], np.int64),
        labels_L=np.full(len(token_ids) + 1, IGNORED_LABEL, np.int64),
        image_begin=len(token_ids),
        codes_IC=np.zeros((0, 1), np.int64),
    )
