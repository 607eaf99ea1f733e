"""transformers' Qwen2 of the same body on the same tokens: what a plain, well-known implementation reaches here.

Its weights and moments are bf16 and its optimizer torch's, so that it has less to do than a ZeRO-3 engine with fp32
weights. Only the logits of labelled tokens are computed, as in ufork.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_check.measuring import GB, peak_bytes, seconds_of
from ufork.model.config import Dimensions, ModelConfig
from ufork.model.cost import path_cost
from ufork.model.layers.attention import choose_attention_kernel
from ufork.model.layers.segments import Segments
from ufork.vocabulary import IGNORED_LABEL, PackedSequence, Task

PACKED = "ufork_packed"
"""Name of the attention over segments, by ufork's kernel, among transformers' attention functions."""


class Qwen2Peer:
    """A Qwen2 with the sizes of `config`'s path of understanding."""

    def __init__(self, config: ModelConfig, dimensions: Dimensions, device: torch.device, dtype: torch.dtype):
        """Builds it with random weights; raises ImportError without transformers."""
        from transformers import Qwen2Config, Qwen2ForCausalLM

        self.config, self.dimensions, self.device, self.dtype = config, dimensions, device, dtype
        torch.manual_seed(0)
        with device:
            self.model = Qwen2ForCausalLM(
                Qwen2Config(
                    vocab_size=dimensions.vocab_size,
                    hidden_size=config.hidden_size,
                    intermediate_size=config.intermediate_size,
                    num_hidden_layers=config.path_layers(Task.UNDERSTANDING),
                    num_attention_heads=config.num_attention_heads,
                    num_key_value_heads=config.num_key_value_heads,
                    rms_norm_eps=config.rms_norm_eps,
                    tie_word_embeddings=config.tie_word_embeddings,
                    use_cache=False,
                )
            ).to(dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)

    def compile(self) -> None:
        """Compiles each decoder layer; all have the same code, so that it is compiled once."""
        for layer in self.model.model.layers:
            layer.compile()

    def measure(self, packed: PackedSequence, *, num_sequences: int, attention: str) -> dict[str, Any]:
        """Returns the figures of steps of `num_sequences` passes over `packed` with one update each.

        Args:
            packed: an understanding sequence, on the device.
            num_sequences: passes in a step.
            attention: PACKED for attention inside samples, or a name of transformers' for attention over the whole
                sequence, which costs more operations; they are counted.
        """
        self._use_attention(attention, packed)
        whole = attention != PACKED
        num_tokens = len(packed.token_ids_T)
        positions_T = torch.arange(num_tokens, device=self.device) if whole else packed.positions_T
        predicted = (packed.labels_T != IGNORED_LABEL).nonzero().squeeze(1)
        labels = packed.labels_T[predicted]

        def step() -> None:
            for _ in range(num_sequences):
                hidden = self.model.model(
                    input_ids=packed.token_ids_T[None], position_ids=positions_T[None], use_cache=False
                ).last_hidden_state[0]
                F.cross_entropy(self.model.lm_head(hidden[predicted]).float(), labels).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

        seconds = seconds_of(step, self.device, warmups=2)
        lengths = [num_tokens] if whole else packed.segment_starts_S1.diff().tolist()
        peak = peak_bytes(step, self.device)
        return {
            "step_seconds": round(seconds, 4),
            "tokens_per_s": round(num_sequences * num_tokens / seconds),
            "tflops": num_sequences * self._flops(lengths, len(labels)) / seconds / 1e12,
            "beside_weights_gb": None if peak is None else round(peak / GB, 2),
        }

    def _flops(self, lengths: Sequence[int], num_predictions: int) -> int:
        return path_cost(
            self.config,
            self.dimensions,
            Task.UNDERSTANDING,
            lengths=list(lengths),
            num_positions=0,
            num_predictions=num_predictions,
        ).training

    def _use_attention(self, attention: str, packed: PackedSequence) -> None:
        from transformers import AttentionInterface

        if attention == PACKED:
            AttentionInterface.register(PACKED, _packed_attention(packed, self.device, self.dtype))
        self.model.set_attn_implementation(attention)


def _packed_attention(
    packed: PackedSequence, device: torch.device, dtype: torch.dtype
) -> Callable[..., tuple[Tensor, None]]:
    """Returns an attention function of transformers' signature: one sequence, heads before tokens."""
    kernel, segments = choose_attention_kernel(device, dtype), Segments(packed)

    def attention(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        query_THW, key_TGW, value_TGW = (x[0].transpose(0, 1) for x in (query, key, value))
        return kernel(query_THW, key_TGW, value_TGW, segments)[None], None

    return attention
