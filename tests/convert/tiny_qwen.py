"""Qwen models of five layers, as transformers saves them."""

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.tiny import QWEN3, tiny_tokenizer

NUM_LAYERS = 5
SIZES = dict(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=NUM_LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_theta=1e6,
)
SMALL = (
    # values of a conversion to a model as small as the others of tests
    "rq_head={hidden_size: 24, attention_size: 32, num_attention_heads: 4, num_blocks: 1}",
    "codebook_size=16",
    "code_width=8",
    "codes_per_position=3",
)


def save_qwen(folder, generation: int, *, tied: bool, hidden_size: int = SIZES["hidden_size"], **saving):
    """Writes a random Qwen2 or Qwen3 model with a tokenizer into `folder`, and returns it."""
    torch.manual_seed(0)
    sizes = {**SIZES, "hidden_size": hidden_size}
    if generation == 2:
        qwen = Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=tied))
    else:
        qwen = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=QWEN3["head_dim"], tie_word_embeddings=tied))
    for parameter in qwen.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.15)
    qwen.eval().save_pretrained(folder, **saving)
    tiny_tokenizer().save(folder)
    return qwen
