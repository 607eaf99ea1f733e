"""Answers questions about images, decoding greedily.

    codes and question -> prefill -> per token: text head -> most likely token -> body step

Shapes: B questions, Y and X rows and columns of positions, C codes per position.
"""

import numpy as np
import torch

from ufork.data.prompts import EncodedSample, question_prompt
from ufork.data.text_tokenizer import TextTokenizer
from ufork.infer.sequences import Sequences
from ufork.model.unifork import UnderstandingBranch, UniFork
from ufork.vocabulary import IGNORED_LABEL, Task


@torch.inference_mode()
def answer_questions(
    model: UniFork, tokenizer: TextTokenizer, codes_BYXC: np.ndarray, questions: list[str], *, max_tokens: int
) -> list[str]:
    """Returns one answer per image and question; an answer ends at the end-of-turn mark or after `max_tokens`."""
    device = model.trunk.token_embedding.weight.device
    branch: UnderstandingBranch = model.branches[Task.UNDERSTANDING]  # type: ignore[assignment]
    sequences = Sequences(model, Task.UNDERSTANDING, device=device)
    prompts = [_encoded(codes, question, tokenizer) for codes, question in zip(codes_BYXC, questions, strict=True)]
    states_BD = sequences.start(prompts, num_new_tokens=max_tokens, image_is_open=False)
    chosen = []
    ended_B = torch.zeros(len(questions), dtype=torch.bool, device=device)
    for step in range(max_tokens):
        tokens_B = branch.head.logits(states_BD).argmax(-1).masked_fill(ended_B, tokenizer.turn_end_id)
        chosen.append(tokens_B)
        ended_B |= tokens_B == tokenizer.turn_end_id
        if bool(ended_B.all()) or step == max_tokens - 1:
            break
        states_BD = sequences.step(model.trunk.token_embedding(tokens_B))
    return [tokenizer.decode(tokens).strip() for tokens in torch.stack(chosen, dim=1).tolist()]


def _encoded(codes_YXC: np.ndarray, question: str, tokenizer: TextTokenizer) -> EncodedSample:
    codes_IC = codes_YXC.reshape(-1, codes_YXC.shape[-1]).astype(np.int64)
    token_ids = [tokenizer.padding_id] * (len(codes_IC) + 2) + tokenizer.encode(question_prompt(question))
    return EncodedSample(
        id="",
        task=Task.UNDERSTANDING,
        token_ids_L=np.array(token_ids, np.int64),
        labels_L=np.full(len(token_ids), IGNORED_LABEL, np.int64),
        image_begin=0,
        codes_IC=codes_IC,
    )
