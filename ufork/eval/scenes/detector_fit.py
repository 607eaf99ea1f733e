"""Fits the detector that scores drawings on real renders, whose truth is known.

    samples of the training split -> Renders: pictures, and per cell the object whose corner it holds
    -> batches, augmented to look like drawings (noise, blur, mixed colours, shuffled cells)
    -> DetectorNetwork, one-cycle AdamW -> Detector

Symbols of the shapes: N renders, B of a batch, S pixels of a side, R rows and C columns of cells.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ufork.data.shards.manifest import Manifest
from ufork.data.shards.sample import Sample
from ufork.data.shards.source import ShardSource
from ufork.errors import CheckpointError, SampleError, ShardError
from ufork.eval.pictures import read_picture
from ufork.eval.scenes.config import DetectorConfig
from ufork.eval.scenes.detector import CELL_PX, CellLogits, Detector, DetectorNetwork, DetectorWords
from ufork.vocabulary import Task

EMPTY = -1
"""Target of a cell that holds no object's corner."""

LOG_EVERY_STEPS = 50

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Renders:
    """Pictures and their targets, as indices into the vocabulary."""

    images_NSS3: Tensor
    """uint8."""
    kinds_NRC: Tensor
    """int64, EMPTY where no object has its corner."""
    colours_NRC: Tensor
    """int64, EMPTY likewise and where it is not to be learned."""
    backgrounds_N: Tensor
    """int64, EMPTY where it is not to be learned."""

    def take(self, indices_B: Tensor) -> "Renders":
        """Returns the renders at `indices_B`."""
        return Renders(**{name: values[indices_B] for name, values in vars(self).items()})


def detector_for(train_folder: Path, config: DetectorConfig, *, folder: Path, seed: int) -> Detector:
    """Loads the detector in `folder` if it was fitted on the same renders, and otherwise fits one and saves it there.

    Args:
        train_folder: the scenes' training source folder, with images.
        config: as for `fit_detector`.
        folder: the detector's folder; made when missing.
        seed: as for `fit_detector`; also determines the order of the samples.

    Raises:
        ShardError: the training source is missing or damaged.
        SampleError: an image cannot be decoded.
        StorageError: `folder` cannot be written.
    """
    recipe = Manifest.load(train_folder).recipe
    fitting = config.model_dump_json(exclude={"seed"})
    origin = hashlib.sha256(f"{recipe} {fitting} {seed}".encode()).hexdigest()
    if folder.exists():
        try:
            detector = Detector.load(folder)
            if detector.words.fitted_on == origin:
                return detector
            logger.info("%s: fitted on other renders or with another config; fitting again", folder)
        except CheckpointError as error:
            logger.info("%s; fitting again", error)
    fitted = fit_detector(_training_samples(train_folder, seed), config, seed=seed)
    detector = Detector(fitted.network, fitted.words.model_copy(update={"fitted_on": origin}))
    detector.save(folder)
    return detector


def fit_detector(samples: Iterable[Sample], config: DetectorConfig, *, seed: int) -> Detector:
    """Fits a detector on the images of `samples` and the objects and backgrounds in their truth.

    Args:
        samples: samples of a scenes source with images, in mixed order; the first `config.max_images` are used.
        config: the network's width, the schedule and the augmentation.
        seed: seed of initial weights, order and augmentation.

    Raises:
        ShardError: there is no sample.
        SampleError: an image cannot be decoded, is not square, or is of another size than the first.
    """
    words, renders = _read(list(islice(samples, config.max_images)), config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DetectorNetwork(words)
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps)
        for step, batch in enumerate(_augmented_batches(renders, config), 1):
            loss = _loss(network(batch.images_NSS3), batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % LOG_EVERY_STEPS == 0 or step == config.steps:
                logger.info("detector: step %d of %d, loss %.4f", step, config.steps, loss.item())
    return Detector(network, words)


def _training_samples(folder: Path, seed: int) -> Iterator[Sample]:
    sources = [ShardSource(folder, task) for task in Task]
    numbers = [(source, number) for source in sources for number in range(len(source))]
    for index in np.random.default_rng(seed).permutation(len(numbers)):
        source, number = numbers[index]
        yield source[number]


def _read(samples: list[Sample], config: DetectorConfig) -> tuple[DetectorWords, Renders]:
    if not samples:
        raise ShardError("there is no sample to fit the detector on; it needs the training scenes with images")
    images_NSS3 = _stack_pictures(samples)
    truths = [sample.truth for sample in samples]
    words = DetectorWords(
        kinds=tuple(sorted({item["kind"] for truth in truths for item in truth["objects"]})),
        colours=tuple(sorted({item["colour"] for truth in truths for item in truth["objects"]})),
        backgrounds=tuple(sorted({truth["background"] for truth in truths})),
        image_px=images_NSS3.shape[1],
        spacing_cells=_spacing_cells(truths),
        width=config.width,
        presence_threshold=config.presence_threshold,
    )
    return words, _targets(words, truths, torch.from_numpy(images_NSS3))


def _stack_pictures(samples: Sequence[Sample]) -> NDArray[np.uint8]:
    first = read_picture(samples[0])
    side_px = len(first)
    if first.shape != (side_px, side_px, 3) or side_px % CELL_PX:
        raise SampleError(
            f"{samples[0].id}: expected a square image of a multiple of {CELL_PX} px, found {first.shape}"
        )
    images_NSS3 = np.empty((len(samples), side_px, side_px, 3), np.uint8)
    for index, sample in enumerate(samples):
        image = read_picture(sample)
        if image.shape != first.shape:
            raise SampleError(
                f"{sample.id}: its image has shape {image.shape}, {samples[0].id} has {first.shape}; use one size"
            )
        images_NSS3[index] = image
    return images_NSS3


def _targets(words: DetectorWords, truths: Sequence[Mapping[str, Any]], images_NSS3: Tensor) -> Renders:
    cells = words.image_px // CELL_PX
    kinds_NRC = torch.full((len(truths), cells, cells), EMPTY)
    colours_NRC = kinds_NRC.clone()
    for index, truth in enumerate(truths):
        for item in truth["objects"]:
            row, column = item["y"] // CELL_PX, item["x"] // CELL_PX
            kinds_NRC[index, row, column] = words.kinds.index(item["kind"])
            colours_NRC[index, row, column] = words.colours.index(item["colour"])
    backgrounds_N = torch.tensor([words.backgrounds.index(truth["background"]) for truth in truths])
    return Renders(images_NSS3=images_NSS3, kinds_NRC=kinds_NRC, colours_NRC=colours_NRC, backgrounds_N=backgrounds_N)


def _spacing_cells(truths: Iterable[Mapping[str, Any]]) -> int:
    """Returns the smallest distance of two objects' corners, as `DetectorWords.spacing_cells`; 1 without a pair."""
    distances_px = [
        max(abs(first["x"] - second["x"]), abs(first["y"] - second["y"]))
        for truth in truths
        for first, second in combinations(truth["objects"], 2)
    ]
    return max(min(distances_px, default=0) // CELL_PX, 1)


def _augmented_batches(renders: Renders, config: DetectorConfig) -> Iterator[Renders]:
    num_renders = len(renders.backgrounds_N)
    order_N = torch.empty(0, dtype=torch.int64)
    for _ in range(config.steps):
        while len(order_N) < config.batch_images:
            order_N = torch.cat([order_N, torch.randperm(num_renders)])
        indices_B, order_N = order_N[: config.batch_images], order_N[config.batch_images :]
        yield _augment(renders.take(indices_B), config)


def _augment(batch: Renders, config: DetectorConfig) -> Renders:
    num_images = len(batch.backgrounds_N)
    batch = _shuffle_cells(batch, torch.rand(num_images) < config.shuffled_share)
    batch = _recolour(batch, torch.rand(num_images) < config.recoloured_share)
    images_BSS3 = batch.images_NSS3
    blurred_B = torch.rand(num_images) < config.blurred_share
    images_BSS3[blurred_B] = _blur(images_BSS3[blurred_B])
    deviations_B111 = torch.rand(num_images, 1, 1, 1) * config.noise * 255
    images_BSS3 += torch.randn_like(images_BSS3) * deviations_B111
    return replace(batch, images_NSS3=images_BSS3.clamp_(0, 255))


def _shuffle_cells(batch: Renders, chosen_B: Tensor) -> Renders:
    """Shuffles the cells of the chosen pictures, which keep their background but no object."""
    images_MSS3 = batch.images_NSS3[chosen_B]
    num_images, side_px = images_MSS3.shape[:2]
    cells = side_px // CELL_PX
    tiles = images_MSS3.view(num_images, cells, CELL_PX, cells, CELL_PX, 3).transpose(2, 3).flatten(1, 2)
    order = torch.rand(num_images, cells * cells).argsort(1)
    tiles = tiles[torch.arange(num_images)[:, None], order]
    tiles = tiles.unflatten(1, (cells, cells)).transpose(2, 3).reshape(images_MSS3.shape)
    images, kinds, colours = batch.images_NSS3.clone(), batch.kinds_NRC.clone(), batch.colours_NRC.clone()
    images[chosen_B], kinds[chosen_B], colours[chosen_B] = tiles, EMPTY, EMPTY
    return replace(batch, images_NSS3=images, kinds_NRC=kinds, colours_NRC=colours)


def _recolour(batch: Renders, chosen_B: Tensor) -> Renders:
    """Converts pictures to float and mixes the channels of the chosen ones, which then have no targets of colour."""
    images, colours, backgrounds = batch.images_NSS3.float(), batch.colours_NRC.clone(), batch.backgrounds_N.clone()
    mixtures_M33 = torch.rand(int(chosen_B.sum()), 3, 3)
    mixtures_M33 /= mixtures_M33.sum(dim=1, keepdim=True)
    images[chosen_B] = torch.einsum("msti,mio->msto", images[chosen_B], mixtures_M33)
    colours[chosen_B], backgrounds[chosen_B] = EMPTY, EMPTY
    return replace(batch, images_NSS3=images, colours_NRC=colours, backgrounds_N=backgrounds)


def _blur(images_BSS3: Tensor) -> Tensor:
    images_B3SS = functional.pad(images_BSS3.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate")
    return functional.avg_pool2d(images_B3SS, kernel_size=3, stride=1).permute(0, 2, 3, 1)


def _loss(logits: CellLogits, batch: Renders) -> Tensor:
    there_NRC = batch.kinds_NRC != EMPTY
    # Only one cell in dozens holds a corner, which the weight compensates in part
    presence = functional.binary_cross_entropy_with_logits(
        logits.presence_BRC, there_NRC.float(), pos_weight=torch.tensor(4.0)
    )
    kinds = functional.cross_entropy(logits.kinds_BKRC, batch.kinds_NRC, ignore_index=EMPTY)
    colours = functional.cross_entropy(logits.colours_BKRC, batch.colours_NRC, ignore_index=EMPTY)
    backgrounds = functional.cross_entropy(logits.background_BK, batch.backgrounds_N, ignore_index=EMPTY)
    return 10 * presence + kinds + colours + backgrounds
