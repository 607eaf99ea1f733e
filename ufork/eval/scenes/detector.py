"""Detects the objects of a picture with their positions and colours, and its background, to score drawings.

    images uint8 [B, S, S, 3] -> DetectorNetwork: per cell of CELL_PX px whether it holds the top left corner of an
    object, its kind and colour; per picture the background -> non-maximum suppression -> Detection

It detects only kinds, colours and backgrounds of the renders that it was fitted on (`detector_fit.py`).
Symbols of the shapes: B pictures, S pixels of a side, R rows and C columns of cells, W width, F features (= W).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from ufork.config import Config
from ufork.errors import CheckpointError, ConfigError
from ufork.eval.scenes.skills import Detection, FoundObject
from ufork.files import make_folder, read_object, write_whole
from ufork.tensor_file import read_tensors, write_tensors
from ufork.without_initialization import WithoutInitialization

CELL_PX = 8
"""Side of a cell, by three convolutions of stride 2. A corner between two cells belongs to the upper left one."""

PALETTE_STRIDE = 2
"""Colours are read from every second pixel in both directions."""

BATCH_IMAGES = 128
"""Pictures per forward pass."""


class DetectorWords(Config):
    """Vocabulary of a detector, and the geometry it was fitted on."""

    kinds: tuple[str, ...] = Field(min_length=1)
    colours: tuple[str, ...] = Field(min_length=1)
    backgrounds: tuple[str, ...] = Field(min_length=1)
    image_px: int = Field(ge=CELL_PX, le=4096, multiple_of=CELL_PX)
    """Side of the square pictures."""
    spacing_cells: PositiveInt
    """Smallest distance of two objects' corners in the renders, the larger of both directions counting."""
    width: PositiveInt
    presence_threshold: float = Field(ge=0, le=1)
    fitted_on: str = ""
    """Digest of the renders, the config and the seed; a detector with the same digest is reused."""

    @model_validator(mode="after")
    def _fits_the_picture(self) -> Self:
        if self.spacing_cells > self.image_px // CELL_PX:
            raise ValueError(f"spacing_cells={self.spacing_cells} is more than a picture of {self.image_px} px has")
        return self


@dataclass(frozen=True, kw_only=True)
class CellLogits:
    """Outputs of the network for a batch."""

    presence_BRC: Tensor
    kinds_BKRC: Tensor
    colours_BKRC: Tensor
    background_BK: Tensor


class DetectorNetwork(nn.Module):
    """Detects kinds by convolutions down to the grid of cells, and colours from single pixels.

    An object in a colour that training never showed it in must not be taken for another object or colour. So the colour
    is read from 1x1 convolutions of the pixels below and right of a corner and their mean, which see no shapes.
    """

    def __init__(self, words: DetectorWords) -> None:
        super().__init__()
        width = words.width
        self.stem = nn.Sequential(
            _convolution(3, 24, kernel=5, stride=2),
            _convolution(24, 48, kernel=3, stride=2),
            _convolution(48, width, kernel=3, stride=2),
        )
        self.blocks = nn.ModuleList([_convolution(width, width, kernel=3, stride=1) for _ in range(2)])
        self.sizes = [1, len(words.kinds), len(words.backgrounds)]
        self.heads = nn.Conv2d(width, sum(self.sizes), kernel_size=1)
        beyond = words.spacing_cells - 1
        self.palette = nn.Sequential(
            _convolution(3, 32, kernel=1, stride=1),
            nn.AvgPool2d(CELL_PX // PALETTE_STRIDE),
            nn.ZeroPad2d((0, beyond, 0, beyond)),
            nn.AvgPool2d(words.spacing_cells, stride=1),
            _convolution(32, 64, kernel=1, stride=1),
            nn.Conv2d(64, len(words.colours), kernel_size=1),
        )

    def features(self, images_BSS3: Tensor) -> Tensor:
        """Returns features [B, W, R, C] of uint8 pictures, or of floats from 0 to 255."""
        hidden = self.stem(_scaled(images_BSS3))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden

    def forward(self, images_BSS3: Tensor) -> CellLogits:
        """Returns logits for each cell and each picture."""
        presence, kinds, background = self.heads(self.features(images_BSS3)).split(self.sizes, dim=1)
        return CellLogits(
            presence_BRC=presence[:, 0],
            kinds_BKRC=kinds,
            colours_BKRC=self.palette(_scaled(images_BSS3[:, ::PALETTE_STRIDE, ::PALETTE_STRIDE])),
            background_BK=background.mean((2, 3)),
        )


class Detector:
    """A fitted network with its vocabulary; frozen."""

    def __init__(self, network: DetectorNetwork, words: DetectorWords) -> None:
        self.network = network.eval().requires_grad_(False)
        self.words = words

    @torch.inference_mode()
    def detect(self, images_BSS3: NDArray[np.uint8]) -> list[Detection]:
        """Detects what each picture shows.

        Raises:
            CheckpointError: the pictures have another size than those that the detector was fitted on.
        """
        size_px = self.words.image_px
        if images_BSS3.shape[1:] != (size_px, size_px, 3):
            raise CheckpointError(
                f"pictures are {images_BSS3.shape[2]}x{images_BSS3.shape[1]} px, the detector was fitted on "
                f"{size_px}x{size_px} px; fit one on renders of the size that the model draws"
            )
        found: list[Detection] = []
        for batch in _batches(images_BSS3):
            logits = self.network(batch)
            presence_BRC = logits.presence_BRC.sigmoid().numpy()
            kinds_BRC, colours_BRC = logits.kinds_BKRC.argmax(1).tolist(), logits.colours_BKRC.argmax(1).tolist()
            backgrounds_B = logits.background_BK.argmax(1).tolist()
            for index, background in enumerate(backgrounds_B):
                objects = self._objects(presence_BRC[index], kinds_BRC[index], colours_BRC[index])
                found.append(Detection(background=self.words.backgrounds[background], objects=objects))
        return found

    @torch.inference_mode()
    def features(self, images_BSS3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns features [B, F] of pictures for the Fréchet distance: the mean over cells."""
        return torch.cat([self.network.features(batch).mean((2, 3)) for batch in _batches(images_BSS3)]).numpy()

    def save(self, folder: Path) -> None:
        """Writes `words.json` and `detector.safetensors` into `folder`, which is made.

        Raises:
            StorageError: the folder cannot be written.
        """
        make_folder(folder)
        write_tensors(folder / "detector.safetensors", self.network.state_dict())
        write_whole(folder / "words.json", json.dumps(self.words.model_dump(mode="json"), indent=2))

    @classmethod
    def load(cls, folder: Path) -> "Detector":
        """Reads a folder that `save` wrote.

        Raises:
            CheckpointError: the folder holds no detector, or its files do not match.
        """
        try:
            words = DetectorWords.from_mapping(read_object(folder / "words.json"), origin="words.json")
            with torch.device("meta"), WithoutInitialization():
                network = DetectorNetwork(words)
            weights = read_tensors(folder / "detector.safetensors", network.state_dict())
            network.load_state_dict(weights, assign=True)
        except (OSError, ValueError, RuntimeError, ConfigError) as error:
            raise CheckpointError(
                f"{folder}: the detector cannot be read ({error}); remove the folder to fit it again"
            ) from None
        return cls(network, words)

    def _objects(
        self, presence_RC: NDArray[np.float32], kinds_RC: list[list[int]], colours_RC: list[list[int]]
    ) -> tuple[FoundObject, ...]:
        objects = []
        left_RC = presence_RC.copy()
        while left_RC.max() > self.words.presence_threshold:
            row, column = np.unravel_index(int(left_RC.argmax()), left_RC.shape)
            objects.append(
                FoundObject(
                    kind=self.words.kinds[kinds_RC[row][column]],
                    colour=self.words.colours[colours_RC[row][column]],
                    x=int(column) * CELL_PX,
                    y=int(row) * CELL_PX,
                    confidence=float(left_RC[row, column]),
                )
            )
            reach = self.words.spacing_cells - 1
            left_RC[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1] = 0
        return tuple(objects)


def _convolution(inputs: int, outputs: int, *, kernel: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=(kernel - 1) // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _scaled(images_BSS3: Tensor) -> Tensor:
    """Returns [B, 3, S, S] from -1 to 1, contiguous since torch 2.13's 1x1 convolution corrupts memory otherwise."""
    return images_BSS3.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def _batches(images_BSS3: NDArray[np.uint8]) -> list[Tensor]:
    return list(torch.from_numpy(np.ascontiguousarray(images_BSS3)).split(BATCH_IMAGES))
