"""Models and packed sequences small enough for any test."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from ufork.data.packing import pack_sequence
from ufork.data.prompts import CodecSizes, EncodedSample
from ufork.data.shards.sample import Sample
from ufork.data.shards.writer import ShardWriter, finish_source, start_source
from ufork.data.text_tokenizer import TextTokenizer
from ufork.model.config import Dimensions, ModelConfig, RqHeadConfig
from ufork.model.initialization import initialize
from ufork.model.unifork import UniFork
from ufork.vocabulary import IGNORED_LABEL, PackedSequence, Task

DIMENSIONS = Dimensions(vocab_size=300, codebook_size=16, code_width=8, codes_per_position=3)
CODEC_SIZES = CodecSizes(codes_per_position=DIMENSIONS.codes_per_position, codebook_size=DIMENSIONS.codebook_size)
POSITIONS_PER_IMAGE = 4


def tiny_config(**changes) -> ModelConfig:
    values = dict(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        trunk_layers=2,
        understanding_layers=1,
        generation_layers=1,
        rq_head=RqHeadConfig(hidden_size=24, attention_size=32, num_attention_heads=4, num_blocks=2, dropout=0.0),
    )
    return ModelConfig(**{**values, **changes})


QWEN3 = {"head_dim": 12, "attention_bias": False, "use_qk_norm": True}
"""What Qwen3's layers have other than Qwen2's."""


def shallow_config(**changes) -> ModelConfig:
    """Returns a config with one layer of each kind: the time of a ZeRO-3 step grows with their number, not width."""
    head = tiny_config().rq_head.model_copy(update={"num_blocks": 1})
    return tiny_config(**{"trunk_layers": 1, "rq_head": head} | changes)


def tiny_model(config: ModelConfig | None = None, seed: int = 0) -> UniFork:
    model = UniFork(config or tiny_config(), DIMENSIONS)
    initialize(model, seed)
    generator = torch.Generator().manual_seed(7)
    model.set_codebook(torch.randn(DIMENSIONS.codebook_size, DIMENSIONS.code_width, generator=generator))
    return model


def encoded_sample(task: Task, text: list[int], *, image: bool = True, seed: int = 0, name: str = "s") -> EncodedSample:
    """Generation: text then image, all codes targets. Understanding: image then text, every text token a target."""
    codes = np.random.default_rng(seed).integers(
        0, DIMENSIONS.codebook_size, (POSITIONS_PER_IMAGE if image else 0, DIMENSIONS.codes_per_position)
    )
    image_tokens = [0] * (POSITIONS_PER_IMAGE + 2 if image else 0)
    tokens = text + image_tokens if task is Task.GENERATION else image_tokens + text
    labels = np.full(len(tokens), IGNORED_LABEL, np.int64)
    if task is Task.UNDERSTANDING:
        first = max(len(image_tokens), 1)
        labels[first - 1 : -1] = tokens[first:]
    begin = (len(text) if task is Task.GENERATION else 0) if image else None
    return EncodedSample(
        id=name,
        task=task,
        token_ids_L=np.array(tokens, np.int64),
        labels_L=labels,
        image_begin=begin,
        codes_IC=codes.astype(np.int64),
    )


def packed_sequence(
    task: Task, *, texts: list[list[int]], images: bool = True, seq_len: int = 64, seed: int = 0
) -> PackedSequence:
    """A packed sequence of one sample per text; sample i has the codes of seed + i."""
    samples = [
        encoded_sample(task, text, image=images, seed=seed + i, name=f"s{seed + i}") for i, text in enumerate(texts)
    ]
    return pack_sequence(samples, seq_len=seq_len, padding_id=0)


TEXTS = ("a red dog", "two apples left of a cat", "a house", "three green stars on blue")


def write_codes_source(folder: Path, *, num_samples: int, seed: int = 0, tasks: Iterable[Task] = Task) -> None:
    """A finished source folder of random codes for each task, with captions of uneven length."""
    rng = np.random.default_rng(seed)
    start_source(folder)
    entries = []
    for task in tasks:
        with ShardWriter(folder, source=folder.name, split="train", task=task, shard_samples=20) as writer:
            for number in range(num_samples):
                text = " and ".join(rng.choice(TEXTS, rng.integers(1, 4)))
                codes = rng.integers(0, DIMENSIONS.codebook_size, (2, 2, DIMENSIONS.codes_per_position))
                words = dict(prompt=text) if task is Task.GENERATION else dict(turns=(("what is this?", text),))
                writer.write(
                    Sample(
                        id=f"{folder.name}-{task}-{number}",
                        task=task,
                        source=folder.name,
                        licence="CC0-1.0",
                        codes=codes.astype(np.uint16),
                        **words,
                    )
                )
        entries += writer.entries
    finish_source(
        folder,
        source=folder.name,
        split="train",
        licence="CC0-1.0",
        attribution="",
        recipe="",
        entries=entries,
        skipped={},
        details={},
    )


def tiny_tokenizer() -> TextTokenizer:
    """Bytes and the special tokens, next to nothing merged."""
    return TextTokenizer.train(TEXTS, vocab_size=300)
