"""A trained model with its tokenizers: pixels and text in, pixels and text out.

folder: model.safetensors, config.json, draw.json, text/ (tokenizer), vision/ (image codec) -> TrainedModel.load
prompts -> draw -> images      images, questions -> answer -> texts      sample -> loss -> cross-entropy
"""

import logging
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ufork.data.packing import pack_sequence
from ufork.data.prompts import CodecSizes, encode_sample, generation_prompt, question_prompt
from ufork.data.shards.sample import Sample
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import CheckpointError, ConfigError
from ufork.files import write_whole
from ufork.infer.answer import answer_questions
from ufork.infer.config import AnswerConfig, DrawConfig
from ufork.infer.draw import draw_codes
from ufork.infer.fused import can_fuse, fuse_products
from ufork.infer.steps import Steps, steps_on
from ufork.model.config import Dimensions
from ufork.model.kernels import choose_kernels, use_kernels
from ufork.model.layers.attention import choose_attention_kernel
from ufork.model.layers.attention_kernels import AttentionKernel
from ufork.model.unifork import UniFork
from ufork.model.weights import WeightsConfig, allocate_model, load_weights, put_weights, save_weights
from ufork.run_folder import trained_seq_len
from ufork.vision.codec import ImageCodec
from ufork.vision.images import decode_image
from ufork.vocabulary import Prompt, Task

log = logging.getLogger(__name__)

TEXT_FOLDER, VISION_FOLDER = "text", "vision"
DRAW_FILE = "draw.json"
"""How the model's drawings are sampled unless told otherwise; a folder without it has the defaults of `DrawConfig`."""

MAX_TEXT_CHARS = 10_000
"""Longest prompt or question; attention's memory grows with the square of the length."""


@dataclass(frozen=True, kw_only=True)
class TargetLoss:
    """Cross-entropy of one sample's targets, which are text tokens or image codes."""

    nats: float
    """Sum over the targets."""
    num_targets: int


class TrainedModel:
    """Draws images, answers questions, and computes the loss of samples."""

    def __init__(self, model: UniFork, tokenizer: TextTokenizer, codec: ImageCodec, *, steps: Steps | None = None):
        """Sets `model` to evaluation; `steps` is how decoding steps are run, by default the device's fastest way."""
        self.model, self.tokenizer, self.codec = model.eval(), tokenizer, codec
        self.device = model.trunk.token_embedding.weight.device
        self.steps = steps or steps_on(self.device)
        self.draw_config = DrawConfig()
        """How drawings are sampled by default."""
        self.seq_len: int | None = None
        """Tokens of the packed sequences of training, where the weights' run says it."""

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """Reads a folder of trained weights onto `device`; the image codec is put there too, in fp32.

        Raises:
            CheckpointError: weights are missing or damaged, or do not match their own config or a tokenizer.
            ConfigError: the file of the sampling is damaged.
            TokenizerError: a tokenizer is missing or damaged.
        """
        weights, config = load_weights(folder)
        codec = ImageCodec.load(folder / VISION_FOLDER, device=str(device))
        tokenizer = TextTokenizer.load(folder / TEXT_FOLDER)
        _check_fit(config.dimensions, tokenizer, codec, folder)
        device = torch.device(device)
        trained = cls.of_weights(
            weights,
            config,
            tokenizer,
            codec,
            kernel=choose_attention_kernel(device, dtype),
            device=device,
            dtype=dtype,
            origin=str(folder),
        )
        use_kernels(trained.model, choose_kernels(device))
        trained.draw_config = load_draw_config(folder)
        trained.seq_len = trained_seq_len(folder)
        return trained

    @classmethod
    def of_weights(
        cls,
        weights: dict[str, Tensor],
        config: WeightsConfig,
        tokenizer: TextTokenizer,
        codec: ImageCodec,
        *,
        kernel: AttentionKernel,
        device: torch.device,
        dtype: torch.dtype,
        origin: str,
        steps: Steps | None = None,
    ) -> Self:
        """Returns a model on `device` with a copy in `dtype` of the whole model's `weights`, which come from `origin`.

        Raises:
            CheckpointError: `weights` are those of another model.
        """
        model = allocate_model(config, kernel, device=device, dtype=dtype)
        put_weights(model, weights, origin=origin)
        model.set_codebook(codec.codebook)
        if can_fuse(device, dtype):
            fuse_products(model)
        return cls(model, tokenizer, codec, steps=steps)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks that the model has a branch for."""
        return tuple(task for task in Task if task in self.model.branches)

    @property
    def precision(self) -> str:
        """What the model computes in: fp32 or bf16. Losses, guidance and sampling are fp32 in both."""
        return "bf16" if self.model.trunk.token_embedding.weight.dtype == torch.bfloat16 else "fp32"

    @property
    def image_px(self) -> int:
        """Side of the square images that the model reads and draws."""
        return self.codec.config.image_px

    def draw(
        self, prompts: Sequence[str], config: DrawConfig | None = None, *, seeds: Sequence[int] | None = None
    ) -> np.ndarray:
        """Draws an image per prompt; each depends on its prompt, its seed and `config`, and not on its batch.

        On GPUs the size of a batch changes how products are rounded, which can change a code that was a close choice.

        Args:
            prompts: texts of at most MAX_TEXT_CHARS characters.
            config: how codes are sampled; `draw_config` by default.
            seeds: one per prompt, at most MAX_SEED + 1; `config.seed` and the numbers that follow it by default.

        Returns:
            uint8 [B, rows, columns, 3].

        Raises:
            ConfigError: the model has no generation branch, or a prompt is empty or too long.
        """
        config = config or self.draw_config
        self.check_texts(Task.GENERATION, prompts, "prompt")
        self._warn_of_long(list(map(generation_prompt, prompts)), "prompt")
        seeds = range(config.seed, config.seed + len(prompts)) if seeds is None else seeds
        rows, columns = self.codec.grid_rows, self.codec.grid_columns
        images = []
        for start in range(0, len(prompts), config.batch_prompts):
            batch = slice(start, start + config.batch_prompts)
            codes_BNC = draw_codes(
                self.model,
                self.tokenizer,
                prompts[batch],
                config,
                num_positions=self.codec.config.num_positions,
                seeds=seeds[batch],
                steps=self.steps,
            )
            images.append(np.asarray(self.codec.decode(codes_BNC.unflatten(1, (rows, columns)))))
        return np.concatenate(images)

    def answer(self, images: np.ndarray, questions: Sequence[str], config: AnswerConfig | None = None) -> list[str]:
        """Answers one question per image (uint8 [B, image_px, image_px, 3]).

        Raises:
            ConfigError: the model has no understanding branch, or a question is empty or too long.
        """
        config = config or AnswerConfig()
        self.check_texts(Task.UNDERSTANDING, questions, "question")
        self._warn_of_long(list(map(question_prompt, questions)), "question")
        seeds = range(config.seed, config.seed + len(questions))
        answers = []
        for start in range(0, len(questions), config.batch_questions):
            batch = slice(start, start + config.batch_questions)
            codes_BYXC = np.asarray(self.codec.encode(images[batch]))
            answers += answer_questions(
                self.model,
                self.tokenizer,
                codes_BYXC,
                list(questions[batch]),
                config,
                seeds=seeds[batch],
                steps=self.steps,
            )
        return answers

    @torch.inference_mode()
    def loss(self, sample: Sample) -> TargetLoss:
        """Computes the cross-entropy of a sample's targets; an image without codes is encoded first.

        Raises:
            SampleError: the sample has no target, its image cannot be decoded, or its codes are not this codec's.
            ConfigError: the model has no branch for the sample's task.
        """
        self._require_branch(sample.task)
        if sample.codes is None and sample.image is not None:
            image = decode_image(sample.image, size_px=self.image_px, purpose=sample.task)
            sample = replace(sample, codes=np.asarray(self.codec.encode(image[None]))[0].astype(np.uint16))
        codec = CodecSizes(codes_per_position=self.codec.codes_per_position, codebook_size=self.codec.codebook_size)
        encoded = encode_sample(sample, self.tokenizer, codec=codec)
        packed = pack_sequence([encoded], seq_len=len(encoded.token_ids_L), padding_id=self.tokenizer.padding_id)
        return TargetLoss(nats=float(self.model(packed.to(self.device))), num_targets=packed.num_targets)

    def check_texts(self, task: Task, texts: Sequence[str], name: str) -> None:
        """Checks that there is a branch for `task`, and that its `texts`, of which each is a `name`, can be read.

        Raises:
            ConfigError: they cannot.
        """
        self._require_branch(task)
        if not texts or not all(text.strip() for text in texts):
            raise ConfigError(f"expected at least one {name}, and none of them empty; found {reprlib.repr(texts)}")
        for text in texts:
            if not _is_unicode(text):
                raise ConfigError(f"a {name} is not valid Unicode text: {reprlib.repr(text)}")
        if (longest := max(map(len, texts))) > MAX_TEXT_CHARS:
            raise ConfigError(f"a {name} has {longest:,} characters, at most {MAX_TEXT_CHARS:,} are read; shorten it")

    def _warn_of_long(self, prompts: Sequence[Prompt], name: str) -> None:
        """Logs how long the longest of `prompts` is with its image, if no sequence of training was as long."""
        if self.seq_len is None:
            return
        num_tokens = max(len(self.tokenizer.encode(prompt)) for prompt in prompts)
        num_tokens += self.codec.config.tokens_per_image
        if num_tokens > self.seq_len:
            log.warning(
                "a %s has %d tokens with its image, and the sequences of training had at most %d (data.seq_len): the"
                " model has learned nothing about positions beyond; shorten it",
                name,
                num_tokens,
                self.seq_len,
            )

    def _require_branch(self, task: Task) -> None:
        if task not in self.model.branches:
            raise ConfigError(
                f"this model has no {task} branch; it was trained with model.tasks={self.model.config.tasks}"
            )


def save_trained(
    folder: Path,
    weights: dict[str, Tensor],
    config: WeightsConfig,
    tokenizer: TextTokenizer,
    codec: ImageCodec,
    draw: DrawConfig,
) -> None:
    """Writes a folder that `TrainedModel.load` reads; `draw` becomes its `draw_config`.

    Raises:
        StorageError: the folder cannot be written.
    """
    save_weights(folder, weights, config)
    tokenizer.save(folder / TEXT_FOLDER)
    codec.save(folder / VISION_FOLDER)
    write_whole(folder / DRAW_FILE, draw.model_dump_json(indent=1) + "\n")


def load_draw_config(folder: Path) -> DrawConfig:
    """Returns how a folder's model samples drawings; the default where it does not say so.

    Raises:
        ConfigError: the file is damaged.
    """
    return DrawConfig.from_yaml(folder / DRAW_FILE) if (folder / DRAW_FILE).exists() else DrawConfig()


def _check_fit(dimensions: Dimensions, tokenizer: TextTokenizer, codec: ImageCodec, folder: Path) -> None:
    found = (*codec.codebook.shape, codec.codes_per_position)
    expected = (dimensions.codebook_size, dimensions.code_width, dimensions.codes_per_position)
    if found != expected:
        raise CheckpointError(
            f"{folder}: the image codec has (codes, code width, codes per position) = {found}, the weights expect"
            f" {expected}; export them again"
        )
    if tokenizer.size > dimensions.vocab_size:
        raise CheckpointError(
            f"{folder}: the text tokenizer has {tokenizer.size} tokens, the weights embed"
            f" {dimensions.vocab_size}; export them again"
        )


def _is_unicode(text: str) -> bool:
    """Whether the text has no lone surrogate, which tokenizers cannot read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
