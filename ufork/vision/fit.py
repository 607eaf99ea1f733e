"""Fits the image tokenizer.

    batches of uint8 images -> distinct patches -> reconstruction loss + commitment loss
    -> AdamW on encoder and decoder, moving averages on the codebook
    -> the autoencoder, and a report on held-out images

The first batches initialise the model: principal components for the linear maps, Lloyd's algorithm for the codebook, so
fitting starts from the best linear tokenizer. Each distinct patch of a batch is processed once and weighted by its
count to a power below 1, so that plain background does not dominate.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ufork.vision.autoencoder import RQVAE
from ufork.vision.codebook import CodebookAverage
from ufork.vision.config import FitConfig, VisionConfig
from ufork.vision.patches import distinct, from_bytes, to_bytes, to_patches

Log = Callable[[dict[str, float]], None]
"""Receives the values of one step by name, including `step`."""


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """Cost of fitting, and quality of the tokenizer on held-out images."""

    steps: int
    seconds: float
    psnr_db: float
    """Peak signal-to-noise ratio over all held-out pixels: 10 log10(255^2 / mean square error), of uint8 values."""
    psnr_db_per_depth: tuple[float, ...]
    """The same when only the first 1, 2, ... C codes are decoded."""
    codes_used_share: float
    """Share of the codebook that held-out images use at any depth."""
    perplexity_per_depth: tuple[float, ...]
    """exp(entropy) of the codes at each depth: the effective number of codes in use."""


def fit(
    images: Iterator[np.ndarray],
    heldout: np.ndarray,
    config: VisionConfig,
    *,
    seed: int,
    log: Log | None = None,
    log_every_steps: int = 50,
) -> tuple[RQVAE, FitReport]:
    """Fits a tokenizer.

    Args:
        images: endless iterator of batches, uint8 [B, H, W, 3] with H = W = `config.image_px`.
        heldout: uint8 [N, H, W, 3], images that do not occur in `images`.
        config: configuration of the tokenizer and of fitting.
        seed: seed of the initial weights, the first codebook and the restarts.
        log: receives step, seconds, loss, psnr_db (weighted as the loss), commitment and restarts.
        log_every_steps: interval between calls of `log`.
    """
    began = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RQVAE(config)
    generator = torch.Generator().manual_seed(seed)
    start(model, _gather(images, config), generator, codebook_rounds=config.fit.codebook_rounds)
    run = _Fitting(model, config.fit, generator, began=began)
    while (progress := run.progress()) < 1:
        record = run.step(torch.from_numpy(next(images)), progress)
        if log is not None and run.steps % log_every_steps == 0:
            log(record())
    model.eval().requires_grad_(False)
    return model, _report(model, heldout, run)


class _Fitting:
    """State of fitting: optimizer, moving averages, clock."""

    def __init__(self, model: RQVAE, config: FitConfig, generator: torch.Generator, *, began: float) -> None:
        self.model = model
        self.config = config
        self.generator = generator
        self.steps = 0
        self.restarts = 0
        self.began = began
        self.average = CodebookAverage(model.quantizer.codebook, decay=config.ema_decay, generator=generator)
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def progress(self) -> float:
        """Progress from 0 to 1, which is reached when either the steps or the seconds are used up."""
        share = self.steps / self.config.steps
        return share if self.config.limit_seconds is None else max(share, self.seconds() / self.config.limit_seconds)

    def step(self, images: Tensor, progress: float) -> Callable[[], dict[str, float]]:
        """Does one optimizer step; returns a function that reads the values to log, which waits for the device."""
        config, model = self.config, self.model
        unique, numbers = distinct(to_patches(images, model.config.patch_px))
        patches = from_bytes(unique)
        weights = torch.bincount(numbers.flatten()).float() ** config.repeat_power
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(progress, config.warmup_ratio)
        reconstruction, quantized = model(patches)
        error = (weights / weights.sum()) @ (reconstruction - patches).square().mean(dim=1)
        loss = error + config.commitment_weight * quantized.commitment
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self._learn_codes(quantized.residuals, quantized.codes, progress)
        self.steps += 1
        return lambda: {
            "step": self.steps,
            "seconds": self.seconds(),
            "loss": loss.item(),
            "psnr_db": _psnr_db(error.item() / 4),
            "commitment": quantized.commitment.item(),
            "restarts": self.restarts,
        }

    def _learn_codes(self, residuals: Tensor, codes: Tensor, progress: float) -> None:
        self.average.update(residuals, codes)
        due = (self.steps + 1) % self.config.restart_every_steps == 0 and progress < self.config.restart_until_share
        if due:
            self.restarts += self.average.restart(residuals, below_uses=self.config.restart_below_uses)


def start(model: RQVAE, patches: Tensor, generator: torch.Generator, *, codebook_rounds: int) -> None:
    """Initialises encoder and decoder with the principal components of `patches` [N, P], then the codebook.

    Features then have mean square 1, and the model reconstructs as well as a linear one.
    """
    width = model.config.code_width
    mean = patches.mean(dim=0)
    _, sizes, axes = torch.linalg.svd(patches - mean, full_matrices=False)
    axes, scale = axes[:width], (width * len(patches)) ** 0.5 / sizes[:width].norm()
    with torch.no_grad():
        model.encoder.linear.weight[: len(axes)] = axes * scale
        model.encoder.linear.bias[: len(axes)] = -(axes @ mean) * scale
        model.decoder.linear.weight[:, : len(axes)] = axes.T / scale
        model.decoder.linear.bias.copy_(mean)
        _start_codebook(model, model.encoder(patches), generator, codebook_rounds)


def _start_codebook(model: RQVAE, features: Tensor, generator: torch.Generator, rounds: int) -> None:
    """Draws an equal share of rows from the residuals of each depth; then Lloyd's algorithm, all depths together."""
    quantizer, residual = model.quantizer, features
    for rows in torch.arange(len(quantizer.codebook)).chunk(quantizer.codes_per_position):
        drawn = residual[torch.randint(len(residual), (len(rows),), generator=generator)]
        quantizer.codebook[rows] = drawn
        residual = residual - drawn[torch.cdist(residual, drawn).argmin(dim=1)]
    average = CodebookAverage(quantizer.codebook, decay=0.0, generator=generator)
    for round_ in range(rounds):
        quantized = quantizer(features)
        average.update(quantized.residuals, quantized.codes)
        if round_ < 0.8 * rounds:
            average.restart(quantized.residuals, below_uses=1.0)


def _gather(images: Iterator[np.ndarray], config: VisionConfig) -> Tensor:
    """Returns the distinct patches of the first batches, in -1..1: [N, P]."""
    first = torch.from_numpy(np.concatenate([next(images) for _ in range(config.fit.start_batches)]))
    return from_bytes(distinct(to_patches(first, config.patch_px))[0])


def _schedule(progress: float, warmup_ratio: float) -> float:
    """Factor of the learning rate: linear warm-up to 1, then a cosine to 0."""
    if progress < warmup_ratio:
        return (progress + 1e-3) / (warmup_ratio + 1e-3)
    return 0.5 + 0.5 * math.cos(math.pi * (progress - warmup_ratio) / (1 - warmup_ratio))


def _psnr_db(mean_square: float) -> float:
    """Peak signal-to-noise ratio of a mean square error relative to the squared peak."""
    return -10 * math.log10(max(mean_square, 1e-12))


@torch.no_grad()
def _report(model: RQVAE, heldout: np.ndarray, run: _Fitting) -> FitReport:
    config = model.config
    num_codes, num_rows = config.codes_per_position, config.codebook_size
    square_sums, uses = [0.0] * num_codes, torch.zeros(num_codes, num_rows)
    for images in torch.from_numpy(heldout).split(256):
        patches = to_patches(images, config.patch_px)
        codes = model.encode(from_bytes(patches))
        for depth in range(num_codes):
            uses[depth] += torch.bincount(codes[..., depth].flatten(), minlength=num_rows)
            drawn = to_bytes(model.decode(codes[..., : depth + 1]))
            square_sums[depth] += (drawn.float() - patches.float()).square().sum().item()
    shares = uses / uses.sum(dim=1, keepdim=True)
    psnr_db = [_psnr_db(total / heldout.size / 255**2) for total in square_sums]
    return FitReport(
        steps=run.steps,
        seconds=run.seconds(),
        psnr_db=psnr_db[-1],
        psnr_db_per_depth=tuple(psnr_db),
        codes_used_share=(uses.sum(dim=0) > 0).float().mean().item(),
        perplexity_per_depth=tuple(torch.special.entr(shares).sum(dim=1).exp().tolist()),
    )
