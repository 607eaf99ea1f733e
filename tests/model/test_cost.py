"""Operations counted from sizes are those that torch counts while the model runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.meta_trace import meta_model, meta_passes, meta_sequence
from tests.tiny import DIMENSIONS, QWEN3, packed_sequence, tiny_config, tiny_model
from ufork.model.config import Dimensions, ModelConfig
from ufork.model.cost import attention_flops, nominal_cost, sequence_cost
from ufork.planning.workload import Workload
from ufork.vocabulary import Task

PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm)


def counted_products(task: Task, *, backward: bool, **changes) -> tuple[int, int]:
    """Operations that torch counts, and those of the cost without attention."""
    config = tiny_config(**changes)
    model, sequence = tiny_model(config), packed_sequence(task, texts=[[5, 6, 7], [8, 9]], seq_len=32)
    with FlopCounterMode(display=False) as counter:
        loss = model(sequence)
        if backward:
            loss.backward()
    counts = counter.get_flop_counts()["Global"]
    cost = sequence_cost(config, DIMENSIONS, sequence)
    attention = config.path_layers(task) * attention_flops(
        config.attention_size, sequence.segment_starts_S1.diff().tolist()
    )
    if task is Task.GENERATION:
        head = config.rq_head
        per_position = attention_flops(head.attention_size, [DIMENSIONS.codes_per_position])
        attention += len(sequence.image_positions_I) * head.num_blocks * per_position
    products = (cost.training - 3 * attention) if backward else (cost.forward - attention)
    return sum(counts.get(product, 0) for product in PRODUCTS), products


@pytest.mark.parametrize("changes", [{}, {"separate_first_layers": 3}, QWEN3], ids=["Y", "separate", "Qwen3"])
@pytest.mark.parametrize("task", Task)
def test_forward_operations(task, changes):
    counted, expected = counted_products(task, backward=False, **changes)
    assert counted == expected


def test_operations_of_separate_first_layers_are_counted_in_the_trunk():
    sequence = packed_sequence(Task.UNDERSTANDING, texts=[[5, 6, 7], [8, 9]], seq_len=32)
    y, x = (sequence_cost(tiny_config(separate_first_layers=n), DIMENSIONS, sequence) for n in (0, 3))
    # 32 tokens; width 32, keys and values 16, MLP 48; segments of 9, 8 and, of padding, 15 tokens, causal
    products = 2 * 32 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    attention = sum(2 * 2 * 32 * length * (length + 1) // 2 for length in sequence.segment_starts_S1.diff().tolist())
    assert (x.trunk - y.trunk, x.branch, x.head) == (3 * (products + attention), y.branch, y.head)


@pytest.mark.parametrize("task", Task)
def test_a_backward_pass_costs_about_twice_as_much(task):
    counted, expected = counted_products(task, backward=True)
    assert counted == pytest.approx(expected, rel=0.1)  # the loss computes its logits again; inputs ask for no gradient


RELEASED = Dimensions(vocab_size=151_680, codebook_size=16_384, code_width=1024, codes_per_position=4)


@pytest.mark.parametrize("task", Task)
def test_operations_of_a_training_pass_at_the_released_size(task):
    """The loss computes its logits again in the backward pass, and the inputs of the embeddings need no gradient."""
    config, seq_len = ModelConfig(), 2048
    workload = Workload(
        model=config,
        dimensions=RELEASED,
        global_batch_size={task: 1},
        seq_len=seq_len,
        num_lanes=1,
        precision="bf16",
        recompute=False,
    )
    model, sequence = meta_model(workload), meta_sequence(workload, task)
    with meta_passes(workload.sequence(task).num_targets), FlopCounterMode(display=False) as counter:
        model(sequence).backward()
    counts = counter.get_flop_counts()["Global"]
    rows, entries = (
        (seq_len // 2, RELEASED.vocab_size)
        if task is Task.UNDERSTANDING
        else (4 * (seq_len - 1), RELEASED.codebook_size)
    )
    again = 2 * rows * config.hidden_size * entries
    projector_inputs = 2 * len(sequence.image_positions_I) * RELEASED.code_width * config.hidden_size
    expected = nominal_cost(config, RELEASED, task, seq_len=seq_len).training + again - projector_inputs
    assert sum(counts.get(product, 0) for product in PRODUCTS) == pytest.approx(expected, rel=0.002)
