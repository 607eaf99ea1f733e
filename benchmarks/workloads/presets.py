"""Models and training sequences that benchmarks measure, by name."""

from dataclasses import dataclass

import numpy as np

from benchmarks.workloads.random_sequences import RandomSequences
from ufork.model.config import Dimensions, ModelConfig, RqHeadConfig
from ufork.vocabulary import PackedSequence, Task


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model, and the packed sequences of one of its training steps."""

    model: ModelConfig
    dimensions: Dimensions
    sequences_per_task: int
    seq_len: int
    text_tokens: tuple[int, int]
    """Fewest tokens of a sample's text, and one more than the most."""
    samples_per_sequence: int | None = None
    """Samples of a packed sequence, which then has no padding; None for as many as fit into `seq_len`."""

    def sequences(self, seed: int = 0) -> dict[Task, list[PackedSequence]]:
        """Returns the packed sequences of a step, with random codes and texts."""
        rng = np.random.default_rng(seed)
        random = RandomSequences(dimensions=self.dimensions, seq_len=self.seq_len, text_tokens=self.text_tokens)
        return {
            task: [
                random.sequence(task, rng, num_samples=self.samples_per_sequence)
                for _ in range(self.sequences_per_task)
            ]
            for task in Task
        }


PRESETS = {
    "default": Preset(  # 13.9M parameters
        model=ModelConfig(
            hidden_size=320,
            intermediate_size=848,
            num_attention_heads=5,
            num_key_value_heads=5,
            trunk_layers=4,
            understanding_layers=3,
            generation_layers=3,
            rq_head=RqHeadConfig(hidden_size=256, attention_size=256, num_attention_heads=4, num_blocks=1, dropout=0.0),
        ),
        dimensions=Dimensions(vocab_size=1024, codebook_size=512, code_width=64, codes_per_position=4),
        sequences_per_task=2,
        seq_len=2048,
        text_tokens=(10, 40),
    ),
    "reference": Preset(  # on which the release's code is measured, too, so few samples of which no token is padding
        model=ModelConfig(
            hidden_size=256,
            intermediate_size=1024,
            num_attention_heads=4,
            num_key_value_heads=2,
            trunk_layers=4,
            understanding_layers=4,
            generation_layers=4,
            rq_head=RqHeadConfig(hidden_size=256, attention_size=512, num_attention_heads=8, num_blocks=3, dropout=0.0),
        ),
        dimensions=Dimensions(vocab_size=8192, codebook_size=2048, code_width=64, codes_per_position=4),
        sequences_per_task=1,
        seq_len=1536,
        text_tokens=(20, 121),
        samples_per_sequence=8,
    ),
}
