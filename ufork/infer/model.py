"""A trained model with its tokenizers: pixels and text in, pixels and text out.

A folder of trained weights holds `model.safetensors`, `config.json`, `text/` (tokenizer) and `vision/` (image codec).
"""

from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import CheckpointError, ConfigError
from ufork.infer.answer import answer_questions
from ufork.infer.config import AnswerConfig, DrawConfig
from ufork.infer.draw import draw_codes
from ufork.model.config import Dimensions
from ufork.model.layers.attention import choose_attention_kernel
from ufork.model.unifork import UniFork
from ufork.model.weights import WeightsConfig, load_weights, put_weights, save_weights
from ufork.vision.codec import ImageCodec
from ufork.vocabulary import Task

TEXT_FOLDER, VISION_FOLDER = "text", "vision"


class TrainedModel:
    """Draws and answers."""

    def __init__(self, model: UniFork, tokenizer: TextTokenizer, codec: ImageCodec):
        self.model, self.tokenizer, self.codec = model.eval(), tokenizer, codec

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """Reads a folder of trained weights.

        Raises:
            CheckpointError: weights are missing, damaged or do not fit their own config or a tokenizer.
            TokenizerError: a tokenizer is missing or damaged.
        """
        weights, config = load_weights(folder)
        codec = ImageCodec.load(folder / VISION_FOLDER)
        tokenizer = TextTokenizer.load(folder / TEXT_FOLDER)
        _check_fit(config.dimensions, tokenizer, codec, folder)
        model = UniFork(config.model, config.dimensions, choose_attention_kernel(torch.device(device), dtype))
        put_weights(model, weights, origin=str(folder))
        model.set_codebook(codec.codebook)
        return cls(model.to(device, dtype), tokenizer, codec)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Those that it has a branch for."""
        return tuple(task for task in Task if task in self.model.branches)

    def draw(self, prompts: list[str], config: DrawConfig | None = None) -> np.ndarray:
        """Images uint8 [B, rows, columns, 3], one per prompt; the same for the same seed and batches.

        Raises:
            ConfigError: the model has no generation branch, or a prompt is empty.
        """
        config = config or DrawConfig()
        self._require(Task.GENERATION, prompts, "prompt")
        generator = torch.Generator(self.model.trunk.token_embedding.weight.device).manual_seed(config.seed)
        grid = (self.codec.grid_rows, self.codec.grid_columns)
        images = []
        for batch in _batches(prompts, config.batch_prompts):
            codes_BNC = draw_codes(
                self.model, self.tokenizer, batch, config, num_positions=grid[0] * grid[1], generator=generator
            )
            images.append(np.asarray(self.codec.decode(codes_BNC.cpu().unflatten(1, grid))))
        return np.concatenate(images)

    def answer(self, images: np.ndarray, questions: list[str], config: AnswerConfig | None = None) -> list[str]:
        """Answers, one per image (uint8 [B, rows, columns, 3]) and question.

        Raises:
            ConfigError: the model has no understanding branch, or a question is empty.
        """
        config = config or AnswerConfig()
        self._require(Task.UNDERSTANDING, questions, "question")
        answers = []
        for start in range(0, len(questions), config.batch_questions):
            part = slice(start, start + config.batch_questions)
            codes_BYXC = np.asarray(self.codec.encode(images[part]))
            answers += answer_questions(
                self.model, self.tokenizer, codes_BYXC, questions[part], max_tokens=config.max_tokens
            )
        return answers

    def _require(self, task: Task, texts: list[str], what: str) -> None:
        if task not in self.model.branches:
            raise ConfigError(
                f"this model has no {task} branch; it was trained with model.tasks={self.model.config.tasks}"
            )
        if not texts or not all(text.strip() for text in texts):
            raise ConfigError(f"expected at least one {what}, and none empty; found {texts}")


def save_trained(
    folder: Path,
    weights: dict[str, Tensor],
    config: WeightsConfig,
    tokenizer: TextTokenizer,
    codec: ImageCodec,
) -> None:
    """Writes what `TrainedModel.load` reads.

    Raises:
        StorageError: the folder cannot be written.
    """
    save_weights(folder, weights, config)
    tokenizer.save(folder / TEXT_FOLDER)
    codec.save(folder / VISION_FOLDER)


def _check_fit(dimensions: Dimensions, tokenizer: TextTokenizer, codec: ImageCodec, folder: Path) -> None:
    found = (*codec.codebook.shape, codec.codes_per_position)
    expected = (dimensions.codebook_size, dimensions.code_width, dimensions.codes_per_position)
    if found != expected:
        raise CheckpointError(
            f"{folder}: the image codec's codes, their width and depth are {found}, those of the weights {expected};"
            " export them again"
        )
    if tokenizer.size > dimensions.vocab_size:
        raise CheckpointError(
            f"{folder}: the text tokenizer has {tokenizer.size} tokens, the weights embed"
            f" {dimensions.vocab_size}; export them again"
        )


def _batches(items: list[str], size: int) -> list[list[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
