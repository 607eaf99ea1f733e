"""Operations counted from sizes are those that torch counts while the model runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import DIMENSIONS, packed_sequence, tiny_config, tiny_model
from ufork.model.cost import attention_flops, sequence_cost
from ufork.vocabulary import Task

PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm)


def counted_products(task: Task, *, backward: bool) -> tuple[int, int]:
    """Operations that torch counts, and those of the cost without attention."""
    config = tiny_config()
    model, sequence = tiny_model(config), packed_sequence(task, texts=[[5, 6, 7], [8, 9]], seq_len=32)
    with FlopCounterMode(display=False) as counter:
        loss = model(sequence)
        if backward:
            loss.backward()
    counts = counter.get_flop_counts()["Global"]
    cost = sequence_cost(config, DIMENSIONS, sequence)
    layers = config.trunk_layers + config.branch_layers(task)
    attention = layers * attention_flops(config.hidden_size, sequence.segment_starts_S1.diff().tolist())
    if task is Task.GENERATION:
        head = config.rq_head
        per_position = attention_flops(head.attention_size, [DIMENSIONS.codes_per_position])
        attention += len(sequence.image_positions_I) * head.num_blocks * per_position
    products = (cost.training - 3 * attention) if backward else (cost.forward - attention)
    return sum(counts.get(product, 0) for product in PRODUCTS), products


@pytest.mark.parametrize("task", Task)
def test_forward_operations(task):
    counted, expected = counted_products(task, backward=False)
    assert counted == expected


@pytest.mark.parametrize("task", Task)
def test_a_backward_pass_costs_about_twice_as_much(task):
    counted, expected = counted_products(task, backward=True)
    assert counted == pytest.approx(expected, rel=0.1)  # the loss computes its logits again; inputs ask for no gradient
