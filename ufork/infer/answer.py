"""Answers questions about images.

    codes and question -> prefill -> per token: text head -> most likely or sampled token -> body step

Shapes: B questions, Y and X rows and columns of positions, C codes per position.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ufork.data.prompts import EncodedSample, question_prompt
from ufork.data.text_tokenizer import TextTokenizer
from ufork.infer.config import AnswerConfig
from ufork.infer.sampling import Sampling, sample, uniform_numbers
from ufork.infer.sequences import Sequences
from ufork.infer.steps import Steps, steps_on
from ufork.model.unifork import UnderstandingBranch, UniFork
from ufork.vocabulary import IGNORED_LABEL, Task


@torch.inference_mode()
def answer_questions(
    model: UniFork,
    tokenizer: TextTokenizer,
    codes_BYXC: np.ndarray,
    questions: list[str],
    config: AnswerConfig,
    *,
    seeds: Sequence[int],
    steps: Steps | None = None,
) -> list[str]:
    """Returns one answer per image and question; an answer ends at the end-of-turn mark or after `config.max_tokens`.

    `steps` is how the steps from token to token are run; the device's fastest way by default.
    """
    steps = steps or steps_on(model.trunk.token_embedding.weight.device)
    prompts = [
        question_about(codes, tokenizer.encode(question_prompt(question)), tokenizer.padding_id)
        for codes, question in zip(codes_BYXC, questions, strict=True)
    ]
    answers = Answers(model, prompts, config, turn_end_id=tokenizer.turn_end_id, seeds=seeds, steps=steps)
    steps.run(answers.step, config.max_tokens - 1, answers.have_ended)
    return [tokenizer.decode(tokens).strip() for tokens in answers.tokens()]


class Answers:
    """Answers under way, in tensors that keep their addresses; the first token of each is chosen at once.

    Each `step` chooses one more token. It is a function of these tensors alone if the steps are static.
    """

    def __init__(
        self,
        model: UniFork,
        prompts: list[EncodedSample],
        config: AnswerConfig,
        *,
        turn_end_id: int,
        seeds: Sequence[int],
        steps: Steps,
    ):
        """Runs the prompts; each answer has its own seed."""
        device, max_tokens = model.trunk.token_embedding.weight.device, config.max_tokens
        self.model, self.turn_end_id = model, turn_end_id
        self.branch: UnderstandingBranch = model.branches[Task.UNDERSTANDING]  # type: ignore[assignment]
        self.sampling = Sampling.of([config], device)
        self.uniform_BN = uniform_numbers(seeds, max_tokens, 1).squeeze(2).to(device)
        self.tokens_BN = torch.full((len(prompts), max_tokens), turn_end_id, device=device)
        self.ended_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        self.chosen_B = torch.zeros(len(prompts), dtype=torch.long, device=device)
        self.num_chosen_1 = torch.zeros(1, dtype=torch.long, device=device)
        self.sequences = Sequences(model, Task.UNDERSTANDING, device=device, static=steps.is_static)
        self._choose(self.sequences.start(prompts, num_new_tokens=max_tokens, image_is_open=False))

    def step(self) -> None:
        """Chooses the next token of each answer; the end-of-turn mark for those that have ended."""
        self._choose(self.sequences.step(self.model.trunk.token_embedding(self.chosen_B)))

    def have_ended(self) -> bool:
        """Whether all answers have ended; waits for the device."""
        return bool(self.ended_B.all())

    def tokens(self) -> list[list[int]]:
        """Returns the tokens of each answer, up to the end of the longest."""
        return self.tokens_BN[:, : int(self.num_chosen_1)].tolist()

    def _choose(self, states_BD: Tensor) -> None:
        uniform_B = self.uniform_BN.index_select(1, self.num_chosen_1).squeeze(1)
        chosen_B = sample(self.branch.head.logits(states_BD), self.sampling, uniform_B)
        chosen_B = chosen_B.masked_fill(self.ended_B, self.turn_end_id)
        self.chosen_B.copy_(chosen_B)
        self.tokens_BN.index_copy_(1, self.num_chosen_1, chosen_B[:, None])
        self.num_chosen_1 += 1
        self.ended_B |= chosen_B == self.turn_end_id


def question_about(codes_YXC: np.ndarray, text_ids: list[int], padding_id: int) -> EncodedSample:
    """Returns an image and the text that asks about it."""
    codes_IC = codes_YXC.reshape(-1, codes_YXC.shape[-1]).astype(np.int64)
    token_ids = [padding_id] * (len(codes_IC) + 2) + text_ids
    return EncodedSample(
        id="",
        task=Task.UNDERSTANDING,
        token_ids_L=np.array(token_ids, np.int64),
        labels_L=np.full(len(token_ids), IGNORED_LABEL, np.int64),
        image_begin=0,
        codes_IC=codes_IC,
    )
