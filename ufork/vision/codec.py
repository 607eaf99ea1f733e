"""The frozen image tokenizer that the rest of ufork uses: encodes images to codes and decodes codes to images.

    folder/config.json + model.safetensors <-> ImageCodec
    images uint8 [B, H, W, 3] -> encode -> codes [B, R, S, C] -> decode -> images

The folder's config names the kind of tokenizer; nothing else depends on it. A codec never changes: no parameter
requires a gradient, and no forward pass writes to the codebook. State that only fitting needs (moving averages) is not
stored.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ufork.errors import ConfigError, TokenizerError
from ufork.files import make_folder, read_object, write_whole
from ufork.tensor_file import read_tensors, write_tensors
from ufork.vision.autoencoder import RQVAE
from ufork.vision.config import RqvaeConfig, TokenizerConfig
from ufork.vision.tokenizer import ImageTokenizer
from ufork.vision.vila_u.tokenizer import VilaU
from ufork.without_initialization import WithoutInitialization

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

NETWORKS: dict[str, type[ImageTokenizer]] = {network.config_class.kind: network for network in (RQVAE, VilaU)}
"""Networks by the kind that config.json names."""
_KIND_KEY = "kind"


class ImageCodec:
    """A frozen image tokenizer on the CPU or another device."""

    def __init__(self, model: ImageTokenizer) -> None:
        self.model = model.float().eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> Self:
        """Reads a folder that `save` or `ufork convert` wrote.

        Raises:
            TokenizerError: a file is missing or damaged, or the weights do not match the config.
        """
        config = read_config(folder)
        model = meta_network(config)
        try:
            weights = read_tensors(folder / WEIGHTS_FILE, model.state_dict(), device=device)
            model.load_state_dict(weights, assign=True)
        except (OSError, ValueError) as error:
            raise TokenizerError(
                f"{folder / WEIGHTS_FILE}: not the weights of the tokenizer in {CONFIG_FILE} ({error}); "
                "make the tokenizer again, or copy both files from the same folder"
            ) from None
        return cls(model)

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
        write_whole(folder / CONFIG_FILE, config_text(self.config))

    @property
    def config(self) -> TokenizerConfig:
        """Configuration of the tokenizer."""
        return self.model.config

    @property
    def codebook(self) -> Tensor:
        """Vectors of the codes: fp32 [K, code_width]."""
        return self.model.codebook

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

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights and the config, which identifies the codec that made given codes."""
        digest = hashlib.sha256(json.dumps(_described(self.config), sort_keys=True).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def encode(self, images: np.ndarray) -> np.ndarray:
        """Returns the codes, int64 [B, R, S, C], of `images` uint8 [B, H, W, 3].

        H and W are `config.image_px`, or another multiple of `config.patch_px`, which gives another R and S.
        """
        assert images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3, (images.dtype, images.shape)
        assert not any(side % self.config.patch_px for side in images.shape[1:3]), images.shape
        return np.concatenate([self.model.encode_images(batch).cpu().numpy() for batch in self._batches(images)])

    @torch.no_grad()
    def decode(self, codes: Tensor | np.ndarray) -> np.ndarray:
        """Returns images uint8 [B, H, W, 3] of `codes` [B, R, S, C] of any integer type; fewer codes draw coarser."""
        return np.concatenate([self.model.decode_images(batch.long()).cpu().numpy() for batch in self._batches(codes)])

    def _batches(self, values: Tensor | np.ndarray) -> Iterator[Tensor]:
        assert len(values), "nothing to encode or decode"
        for first in range(0, len(values), self.model.batch_images):
            batch = values[first : first + self.model.batch_images]
            # numpy's uint16 has no arithmetic in torch
            batch = batch if isinstance(batch, Tensor) or batch.dtype == np.uint8 else batch.astype(np.int64)
            yield torch.as_tensor(batch).to(self.codebook.device)


def meta_network(config: TokenizerConfig) -> ImageTokenizer:
    """Returns the network of `config` without memory, of which only names and shapes are real."""
    with torch.device("meta"), WithoutInitialization():
        return NETWORKS[config.kind](config)


def read_config(folder: Path) -> TokenizerConfig:
    """Reads the config of the tokenizer in `folder`.

    Raises:
        TokenizerError: the file is missing or damaged, or names a kind or a key that is not known.
    """
    path = folder / CONFIG_FILE
    try:
        mapping = read_object(path)
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"{path}: not the config of an image tokenizer ({error}); give a folder written by `ufork tokenizer fit` or"
            " `ufork convert`"
        ) from None
    kind = mapping.pop(_KIND_KEY, RqvaeConfig.kind)
    if kind not in list(NETWORKS):  # of any type
        raise TokenizerError(f"{path}: kind {kind!r} of image tokenizer; known are {', '.join(NETWORKS)}")
    mapping.pop("fit", None)  # does not matter once the tokenizer is fitted
    try:
        return NETWORKS[kind].config_class.from_mapping(mapping, origin=str(path))
    except ConfigError as error:
        raise TokenizerError(str(error)) from None


def config_text(config: TokenizerConfig) -> str:
    """Returns the contents of config.json."""
    return json.dumps(_described(config), indent=1) + "\n"


def _described(config: TokenizerConfig) -> dict[str, Any]:
    """The config without keys of recipes, which serve to make a tokenizer."""
    keys = NETWORKS[config.kind].config_class.model_fields
    values = config.model_dump(mode="json", include=set(keys))
    # Without the kind, digests and folders of ufork's own tokenizers stay those of versions that had no other.
    return values if config.kind == RqvaeConfig.kind else {_KIND_KEY: config.kind, **values}
