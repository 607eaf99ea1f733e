"""The frozen image tokenizer that the rest of ufork uses: encodes images to codes and decodes codes to images.

    folder/config.json + model.safetensors <-> ImageCodec
    images uint8 [B, H, W, 3] -> encode -> codes [B, R, S, C] -> decode -> images

A codec never changes: no parameter requires a gradient, and no forward pass writes to the codebook. State that only
fitting needs (moving averages) is not stored.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ufork.errors import ConfigError, TokenizerError
from ufork.files import make_folder, write_tensors, write_whole
from ufork.vision.autoencoder import RQVAE
from ufork.vision.config import VisionConfig
from ufork.vision.patches import distinct, from_bytes, to_bytes, to_images, to_patches

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_BATCH_IMAGES = 256
"""Images per forward pass, which bounds its memory."""


class ImageCodec:
    """A frozen image tokenizer on the CPU or another device."""

    def __init__(self, model: RQVAE) -> None:
        self.model = model.float().eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> Self:
        """Reads a folder that `save` wrote.

        Raises:
            TokenizerError: a file is missing or damaged, or the weights do not match the config.
        """
        config = _read_config(folder / CONFIG_FILE)
        model = RQVAE(config)
        try:
            model.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise TokenizerError(
                f"{folder / WEIGHTS_FILE}: not the weights of the tokenizer in {CONFIG_FILE} ({error}); "
                "fit the tokenizer again, or copy both files from the same folder"
            ) from None
        return cls(model.to(device))

    def on(self, device: torch.device) -> "ImageCodec":
        """Returns this codec if it is on `device`, otherwise a copy there."""
        if self.codebook.device == device:
            return self
        return ImageCodec(copy.deepcopy(self.model).to(device))

    def save(self, folder: Path) -> None:
        """Writes config and weights into `folder`; creates it if missing.

        Raises:
            StorageError: the folder cannot be written.
        """
        make_folder(folder)
        write_tensors(folder / WEIGHTS_FILE, self.model.state_dict())
        write_whole(folder / CONFIG_FILE, json.dumps(self._description(), indent=1) + "\n")

    @property
    def config(self) -> VisionConfig:
        """Configuration of the tokenizer."""
        return self.model.config

    @property
    def codebook(self) -> Tensor:
        """Vectors of the codes: fp32 [K, code_width]."""
        return self.model.quantizer.codebook

    @property
    def codebook_size(self) -> int:
        """K, the number of codes."""
        return self.config.codebook_size

    @property
    def codes_per_position(self) -> int:
        """C, the residual depth."""
        return self.config.codes_per_position

    @property
    def grid_rows(self) -> int:
        """R, positions down the image."""
        return self.config.grid_rows

    @property
    def grid_columns(self) -> int:
        """S, positions across the image."""
        return self.config.grid_columns

    @property
    def digest(self) -> str:
        """SHA-256 of the weights and the config, which identifies the codec that made given codes."""
        digest = hashlib.sha256(json.dumps(self._description(), sort_keys=True).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def encode(self, images: np.ndarray) -> np.ndarray:
        """Returns the codes, int64 [B, R, S, C], of `images` uint8 [B, H, W, 3] with H = W = `config.image_px`."""
        assert images.dtype == np.uint8 and images.shape[1:] == (self.config.image_px, self.config.image_px, 3), (
            images.dtype,
            images.shape,
        )
        return np.concatenate([self._encode(batch).numpy() for batch in self._batches(images)])

    @torch.no_grad()
    def decode(self, codes: Tensor | np.ndarray) -> np.ndarray:
        """Returns images uint8 [B, H, W, 3] of `codes` [B, R, S, C] of any integer type; fewer codes draw coarser."""
        batches = (to_bytes(self.model.decode(batch.long())) for batch in self._batches(codes))
        return np.concatenate([to_images(batch, self.config.patch_px).cpu().numpy() for batch in batches])

    def _description(self) -> dict[str, Any]:
        """The config without its `fit` section, which is in the run's config."""
        return self.config.model_dump(mode="json", exclude={"fit"})

    def _encode(self, images: Tensor) -> Tensor:
        patches, numbers = distinct(to_patches(images, self.config.patch_px))
        return self.model.encode(from_bytes(patches)).cpu()[numbers]

    def _batches(self, values: Tensor | np.ndarray) -> Iterator[Tensor]:
        assert len(values), "nothing to encode or decode"
        for first in range(0, len(values), _BATCH_IMAGES):
            batch = values[first : first + _BATCH_IMAGES]
            # numpy's uint16 has no arithmetic in torch
            batch = batch if isinstance(batch, Tensor) or batch.dtype == np.uint8 else batch.astype(np.int64)
            yield torch.as_tensor(batch).to(self.codebook.device)


def _read_config(path: Path) -> VisionConfig:
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TokenizerError(
            f"{path}: not the config of an image tokenizer ({error}); give a folder written by `ufork tokenizer fit`"
        ) from None
    if not isinstance(mapping, dict):
        raise TokenizerError(f"{path}: expected a JSON object, found {type(mapping).__name__}")
    mapping.pop("fit", None)  # does not matter once the tokenizer is fitted
    try:
        return VisionConfig.from_mapping(mapping, origin=str(path))
    except ConfigError as error:
        raise TokenizerError(str(error)) from None
