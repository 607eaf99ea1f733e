"""Fitting learns to reconstruct, keeps its time limit, and is reproducible."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ufork.vision.autoencoder import RQVAE
from ufork.vision.config import FitConfig, VisionConfig
from ufork.vision.fit import fit, start
from ufork.vision.patches import from_bytes, to_patches


def config(**fit_values) -> VisionConfig:
    values = dict(steps=60, batch_images=16, start_batches=4, codebook_rounds=10)
    return VisionConfig(
        image_px=16,
        patch_px=4,
        codes_per_position=3,
        codebook_size=32,
        code_width=8,
        hidden_width=32,
        fit=FitConfig(**{**values, **fit_values}),
    )


def drawings(count: int, seed: int) -> np.ndarray:
    """Images of plain squares on a plain background, at multiples of 2 px."""
    random = np.random.default_rng(seed)
    colours = np.array([[255, 255, 255], [220, 30, 30], [30, 60, 220], [240, 200, 0], [20, 150, 60]], np.uint8)
    images = np.empty((count, 16, 16, 3), np.uint8)
    for image in images:
        ground, ink = random.choice(len(colours), size=2, replace=False)
        y, x = 2 * random.integers(0, 5, size=2)
        image[:] = colours[ground]
        image[y : y + 8, x : x + 8] = colours[ink]
    return images


def batches(size: int = 16) -> Iterator[np.ndarray]:
    return (drawings(size, seed) for seed in itertools.count(100))


def test_unseen_images_are_reconstructed():
    heldout = drawings(64, seed=1)
    model, report = fit(batches(), heldout, config(), seed=0)
    blurred = 10 * math.log10(255**2 / (heldout - heldout.mean(axis=(1, 2), keepdims=True)).var())
    assert report.psnr_db > blurred + 8 and report.psnr_db > 20, report
    assert list(report.psnr_db_per_depth) == sorted(report.psnr_db_per_depth)
    assert report.psnr_db == report.psnr_db_per_depth[-1]
    assert 0.3 < report.codes_used_share <= 1 and all(1 <= p <= 32 for p in report.perplexity_per_depth)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_fitting_improves_on_the_linear_start():
    heldout = drawings(64, seed=1)
    _, first = fit(batches(), heldout, config(steps=1), seed=0)
    _, last = fit(batches(), heldout, config(steps=150), seed=0)
    assert last.psnr_db > first.psnr_db + 1


def test_the_figures_of_the_report_follow_from_the_codes():
    heldout = drawings(40, seed=1)
    model, report = fit(batches(), heldout, config(steps=5), seed=0)
    from ufork.vision.codec import ImageCodec

    codec = ImageCodec(model)
    codes = codec.encode(heldout)
    error = ((codec.decode(codes).astype(float) - heldout) ** 2).mean()
    assert report.psnr_db == pytest.approx(10 * math.log10(255**2 / error), abs=1e-3)
    assert report.codes_used_share == pytest.approx(len(np.unique(codes)) / 32)
    shares = np.unique(codes[..., 0], return_counts=True)[1] / codes[..., 0].size
    assert report.perplexity_per_depth[0] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


def test_weights_depend_on_the_seed_alone():
    def weights(seed: int) -> torch.Tensor:
        model, _ = fit(batches(), drawings(8, seed=1), config(steps=8), seed=seed)
        return torch.cat([value.flatten() for value in model.state_dict().values()])

    first = weights(0)
    assert torch.equal(first, weights(0)) and not torch.equal(first, weights(1))


def test_the_time_limit_ends_fitting():
    _, report = fit(batches(), drawings(8, seed=1), config(steps=10**9, limit_seconds=0.5), seed=0)
    assert 0 < report.steps < 10**5 and report.seconds < 10


def test_the_log_receives_records():
    records = []
    fit(batches(), drawings(8, seed=1), config(steps=6), seed=0, log=records.append, log_every_steps=3)
    assert [record["step"] for record in records] == [3, 6]
    assert all(math.isfinite(record["loss"]) and math.isfinite(record["psnr_db"]) for record in records)


@pytest.mark.parametrize("num_images", [1, 40])  # fewer patches than features, and many
def test_fitting_starts_from_the_principal_components(num_images):
    patches = from_bytes(to_patches(torch.from_numpy(drawings(num_images, seed=3)), 4)).flatten(0, -2)
    model = RQVAE(config())
    start(model, patches, torch.Generator().manual_seed(0), codebook_rounds=4)
    features = model.encoder(patches)
    centred = patches - patches.mean(dim=0)
    lost = (model.decoder(features) - patches).square().sum().item()
    expected = torch.linalg.svdvals(centred.double())[8:].square().sum().item()
    assert lost == pytest.approx(expected, rel=1e-2, abs=1e-2)
    assert features.square().mean().item() == pytest.approx(1, rel=1e-3)
