"""Padded rows: any padding gives the values of the packed sequences that training uses, and what decoding continues."""

from dataclasses import replace

import pytest
import torch

from tests.tiny import DIMENSIONS, POSITIONS_PER_IMAGE, packed_sequence, tiny_model, tiny_tokenizer
from ufork.infer.config import DrawConfig
from ufork.infer.draw import draw_codes, prompt_sequences
from ufork.infer.padded_rows import IMAGE_PLACEHOLDER, PaddedRows, answer_rows, draw_rows, run_rows
from ufork.vocabulary import IGNORED_LABEL, Task

TEXTS = [[5, 6, 7, 8, 9], [10, 11, 12]]
PADDING = 299


def rows_of(task: Task, *, left: bool = False, padding: int = 3) -> PaddedRows:
    """The samples of `packed_sequence(task, texts=TEXTS)`, padded to one length."""
    packed = packed_sequence(task, texts=TEXTS)
    generation = task is Task.GENERATION
    token_ids = [[*text, IMAGE_PLACEHOLDER] if generation else [IMAGE_PLACEHOLDER, *text] for text in TEXTS]
    length = max(map(len, token_ids)) + padding

    def padded(values: list[int], value: int) -> list[int]:
        pads = [value] * (length - len(values))
        return pads + values if left else values + pads

    ids = torch.tensor([padded(row, PADDING) for row in token_ids])
    labels = [[IGNORED_LABEL if token < 0 or generation else token for token in row] for row in token_ids]
    return PaddedRows(
        task=task,
        token_ids_RT=ids,
        mask_RT=ids != PADDING,
        labels_RT=torch.tensor([padded(row, IGNORED_LABEL) for row in labels]),
        codes_RNC=packed.codes_IC.view(len(TEXTS), POSITIONS_PER_IMAGE, -1),
    )


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("task", Task)
def test_the_loss_and_its_gradients_are_those_of_a_packed_sequence(task, left):
    model = tiny_model()
    packed = packed_sequence(task, texts=TEXTS)
    result = run_rows(model, rows_of(task, left=left))
    assert result.num_targets == packed.num_targets
    expected = model(packed) / packed.num_targets
    torch.testing.assert_close(result.loss, expected)
    parameters = [p for name, p in model.named_parameters() if task in name or name.startswith("trunk")]
    found = torch.autograd.grad(result.loss, parameters, allow_unused=True)
    for gradient, wanted in zip(found, torch.autograd.grad(expected, parameters, allow_unused=True), strict=True):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("task", Task)
def test_the_loss_is_the_cross_entropy_of_the_logits(task):
    rows = rows_of(task)
    result = run_rows(tiny_model(), rows)
    if task is Task.GENERATION:
        targets = rows.codes_RNC
    else:  # begin mark, image and end mark, then the tokens; each position predicts the next one
        image = torch.full((len(TEXTS), POSITIONS_PER_IMAGE + 1), IGNORED_LABEL)
        text = rows.labels_RT[:, 1 : 1 + max(map(len, TEXTS))]
        targets = torch.cat((image, text, image[:, :1]), dim=1)
    expected = torch.nn.functional.cross_entropy(result.logits.flatten(0, -2), targets.flatten())
    torch.testing.assert_close(result.loss, expected)


def test_compatibility_with_the_release_takes_the_loss_over_the_first_positions():
    model, rows = tiny_model(), rows_of(Task.GENERATION)
    result = run_rows(model, rows, compatibility="release", release_loss_positions=3)
    expected = torch.nn.functional.cross_entropy(result.logits[:, :3].flatten(0, -2), rows.codes_RNC[:, :3].flatten())
    torch.testing.assert_close(result.loss, expected)
    assert result.num_targets == rows.codes_RNC[:, :3].numel()
    cut = replace(rows, codes_RNC=rows.codes_RNC[:, :3])
    torch.testing.assert_close(run_rows(model, cut).loss, expected, msg="nothing depends on the positions after them")
    whole = run_rows(model, rows, compatibility="release")
    torch.testing.assert_close(whole.loss, run_rows(model, rows).loss, msg="an image has fewer positions than 256")


def test_rows_are_drawn_as_their_prompts_are():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    config = DrawConfig(guidance=3.0, temperature=0.0)
    sequences = prompt_sequences(["a red dog", "a house"], tokenizer, guidance=config.guidance)
    token_ids = [sequence.token_ids_L[:-1].tolist() for sequence in sequences]  # without the begin mark
    length = max(map(len, token_ids))
    ids = torch.tensor([[PADDING] * (length - len(row)) + row for row in token_ids])
    rows = [PaddedRows(task=Task.GENERATION, token_ids_RT=x, mask_RT=x != PADDING) for x in ids.split(2)]
    found = draw_rows(model, rows[0], config, num_positions=4, unconditional=rows[1])
    assert found.equal(draw_codes(model, tokenizer, ["a red dog", "a house"], config, num_positions=4, seeds=[0, 1]))


def test_answers_continue_rows_greedily():
    model, rows = tiny_model(), rows_of(Task.UNDERSTANDING, left=True)
    answers = answer_rows(model, rows, end_id=PADDING, max_tokens=3)
    for row, answer in enumerate(answers):
        text = list(TEXTS[row])
        for token in answer:
            ids = torch.tensor([[IMAGE_PLACEHOLDER, *text]])
            alone = PaddedRows(
                task=Task.UNDERSTANDING,
                token_ids_RT=ids,
                mask_RT=torch.ones_like(ids, dtype=torch.bool),
                codes_RNC=rows.codes_RNC[row : row + 1],
            )
            assert int(run_rows(model, alone).logits[0, -1].argmax()) == token
            text.append(token)
    assert len(answers[0]) == 3 or answers[0][-1] == PADDING


def test_a_row_without_an_image_needs_no_codes():
    ids = torch.tensor([[5, 6, 7]])
    rows = PaddedRows(
        task=Task.UNDERSTANDING, token_ids_RT=ids, mask_RT=torch.ones_like(ids, dtype=torch.bool), labels_RT=ids
    )
    result = run_rows(tiny_model(), rows)
    assert result.num_targets == 2 and result.logits.shape == (1, 3, DIMENSIONS.vocab_size)
