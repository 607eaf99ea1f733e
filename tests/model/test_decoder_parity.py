"""The body against transformers' Qwen2 and Qwen3, and packed sequences against each sample alone."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.tiny import DIMENSIONS, QWEN3, packed_sequence, tiny_config, tiny_model
from ufork.model.layers.attention import PackedAttention
from ufork.model.layers.attention_kernels import sdpa_attention
from ufork.vocabulary import Task

QWEN_NAMES = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "attention.out": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}


@pytest.fixture(
    params=[(Qwen2Config, Qwen2ForCausalLM, {}), (Qwen3Config, Qwen3ForCausalLM, QWEN3)], ids=["Qwen2", "Qwen3"]
)
def qwen_and_ours(request):
    qwen_config, qwen_class, changes = request.param
    config = tiny_config(trunk_layers=1, understanding_layers=2, **changes)
    ours = tiny_model(config)
    torch.manual_seed(0)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    head_dim = {"head_dim": config.head_dim} if changes else {}
    qwen = qwen_class(
        qwen_config(
            **head_dim,
            vocab_size=DIMENSIONS.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=3,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            rope_theta=config.rope_theta,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=True,
        )
    ).eval()
    branch = ours.branches[Task.UNDERSTANDING]
    state = {"model.embed_tokens.weight": ours.trunk.token_embedding.weight, "model.norm.weight": branch.norm.weight}
    for number, layer in enumerate([*ours.trunk.stack.layers, *branch.stack.layers]):
        for name, tensor in layer.state_dict().items():
            module, kind = name.rsplit(".", 1)
            state[f"model.layers.{number}.{QWEN_NAMES[module]}.{kind}"] = tensor
    qwen.load_state_dict(state, strict=False)
    return qwen, ours


def test_the_loss_of_a_packed_sequence_equals_qwens(qwen_and_ours):
    qwen, ours = qwen_and_ours
    sequence = packed_sequence(Task.UNDERSTANDING, texts=[[5, 6, 7, 8, 9], [10, 11, 12]], images=False, seq_len=12)
    expected = 0.0
    for tokens in ([5, 6, 7, 8, 9], [10, 11, 12]):
        logits = qwen(input_ids=torch.tensor([tokens])).logits[0]
        expected += torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]), reduction="sum")
    torch.testing.assert_close(ours(sequence), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", Task)
def test_neighbours_and_padding_in_a_packed_sequence_change_nothing(task):
    model = tiny_model()
    texts = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14]]
    together = model(packed_sequence(task, texts=texts, seq_len=64))
    alone = sum(model(packed_sequence(task, texts=[text], seq_len=20, seed=i)) for i, text in enumerate(texts))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_gradients_do_not_cross_samples():
    model = tiny_model()
    sequence = packed_sequence(Task.UNDERSTANDING, texts=[[5, 6, 7], [8, 9, 10]], seq_len=32)
    inputs = model.trunk.embed(sequence).detach().requires_grad_()
    attend = PackedAttention(sequence, sdpa_attention)
    hidden = model.trunk.stack(inputs, sequence.positions_T, attend)
    start = int(sequence.segment_starts_S1[1])
    hidden[start:].sum().backward()
    assert inputs.grad[:start].abs().max() == 0
    assert inputs.grad[start:].abs().max() > 0
