"""The depth transformer: all depths at once, and one after the other with its cache."""

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import DIMENSIONS, tiny_config
from ufork.model.image_embedding import CodeEmbedding
from ufork.model.rq_head import RqHead

BODY_WIDTH, NUM_POSITIONS = 20, 5


@pytest.fixture
def head():
    torch.manual_seed(0)
    head = RqHead(tiny_config().rq_head, DIMENSIONS, BODY_WIDTH)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


@pytest.fixture
def embedding():
    embedding = CodeEmbedding(DIMENSIONS.codebook_size, DIMENSIONS.code_width)
    embedding.codebook_KE.copy_(torch.randn(embedding.codebook_KE.shape, generator=torch.Generator().manual_seed(1)))
    return embedding


def position_inputs():
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(NUM_POSITIONS, BODY_WIDTH, generator=generator)
    shape = (NUM_POSITIONS, DIMENSIONS.codes_per_position)
    return hidden, torch.randint(DIMENSIONS.codebook_size, shape, generator=generator)


def all_logits(head, embedding, hidden, codes):
    return head.out(head.states(hidden, embedding(codes)))


def test_codes_one_by_one_get_the_logits_of_all_at_once(head, embedding):
    hidden, codes = position_inputs()
    past = [[] for _ in head.blocks]
    entering, stepwise = hidden, []
    for depth in range(DIMENSIONS.codes_per_position):
        stepwise.append(head.next_logits(entering, depth, past))
        entering = embedding.codebook_KE[codes[:, : depth + 1]].sum(1)
    torch.testing.assert_close(torch.stack(stepwise, dim=1), all_logits(head, embedding, hidden, codes))


@pytest.mark.parametrize("depth", range(DIMENSIONS.codes_per_position))
def test_a_code_is_seen_by_deeper_depths_of_its_own_position_alone(head, embedding, depth):
    hidden, codes = position_inputs()
    before = all_logits(head, embedding, hidden, codes)
    codes[2, depth] = (codes[2, depth] + 1) % DIMENSIONS.codebook_size
    differs = (all_logits(head, embedding, hidden, codes) != before).any(-1)
    expected = torch.zeros_like(differs)
    expected[2, depth + 1 :] = True
    assert differs.equal(expected)


def test_the_loss_is_the_cross_entropy_of_every_code(head, embedding):
    hidden, codes = position_inputs()
    expected = F.cross_entropy(
        all_logits(head, embedding, hidden, codes).flatten(0, 1), codes.flatten(), reduction="sum"
    )
    torch.testing.assert_close(head(hidden, embedding(codes), codes), expected)


def test_code_embeddings_are_sums_down_to_each_depth(embedding):
    codes = torch.tensor([[3, 5, 3]])
    vectors = embedding.codebook_KE
    expected = torch.stack([vectors[3], vectors[3] + vectors[5], 2 * vectors[3] + vectors[5]])
    torch.testing.assert_close(embedding(codes)[0], expected)
