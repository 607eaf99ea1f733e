"""VILA-U's image tokenizer, made into a folder of ufork's, and its RQ head.

    DIR/vision_tower: config.json, model.safetensors -> checked -> FOLDER: config.json, model.safetensors, rq_head/

UniFork's release has the same tensors behind a prefix, so `ufork/convert/unifork.py` uses this module, too. SigLIP's
text model, its last layer and what follows that layer are not read (specification of the release, section 3).
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import PositiveInt

from ufork.config import Config, merge_overrides
from ufork.convert.matching import Shape, require_match
from ufork.convert.planned_file import PlannedTensor, copy_of, write_planned
from ufork.convert.tensor_folder import TensorFolder, TensorSize
from ufork.convert.vila_u_config import RqHeadSizes, read_tower_sizes
from ufork.convert.vila_u_names import rq_head_name, tokenizer_name
from ufork.files import make_folder, write_whole
from ufork.model.rq_head import RqHead
from ufork.model.weights import CONFIG_NAME
from ufork.vision.codec import CONFIG_FILE, WEIGHTS_FILE, config_text, meta_network
from ufork.vision.vila_u.config import VilaUConfig
from ufork.vocabulary import Task
from ufork.without_initialization import WithoutInitialization

TOWER_FOLDER, RQ_HEAD_FOLDER = "vision_tower", "rq_head"
RQ_HEAD_PREFIX = f"branches.{Task.GENERATION}.head."
"""Prefix of the RQ head's parameters in a whole model."""
UNUSED = (
    r"rqvaesiglip\.(siglip_model\.)?logit_(scale|bias)",
    r"rqvaesiglip\.siglip_model\.text_model\..*",
    r"rqvaesiglip\.siglip_model\.vision_model\.(post_layernorm|head)\..*",
    r"rqvaesiglip\.quantizer\.codebooks\.\d+\.(weight|cluster_size_ema|embed_ema)",
)
"""Patterns of VILA-U's tensors that are not read, besides SigLIP's last layer; further codebooks are copies."""
CODEBOOK, DEPTH_POSITIONS = "quantizer.codebook", "depth_positions_CP"
PADDING_ROWS = 1
"""Rows at the end of VILA-U's codebook that are no code."""


class VilaUOverrides(Config):
    """What a tokenizer is made into."""

    image_px: PositiveInt | None = None
    """Side of the images to encode and to draw; default: that of the images which the encoder was trained on. UniFork
    uses 384."""


@dataclass(frozen=True, kw_only=True)
class ConvertedVilaU:
    """What has been written."""

    config: VilaUConfig
    num_parameters: int
    """Of the tokenizer, with the codebook."""
    num_rq_head_parameters: int
    """0 where there is no RQ head."""
    num_bytes: int


def convert(source: Path, folder: Path, overrides: Sequence[str] = ()) -> ConvertedVilaU:
    """Writes the image tokenizer in `source` into `folder`, and its RQ head, if it has one, into `folder/rq_head`.

    Weights keep their precision.

    Args:
        source: VILA-U's folder `vision_tower`, or the one that contains it.
        folder: what a recipe names as `vision.folder`.
        overrides: values of `VilaUOverrides`, such as `image_px=384`.

    Raises:
        ConfigError: an override is unknown or out of range.
        CheckpointError: the files are damaged, or not those of a VILA-U tokenizer with one codebook.
        NonFiniteError: a weight is NaN or infinite.
        StorageError: the folder cannot be written.
    """
    chosen = VilaUOverrides.from_mapping(merge_overrides({}, overrides), origin="ufork convert vila-u")
    tower = source / TOWER_FOLDER if (source / TOWER_FOLDER).is_dir() else source
    sizes = read_tower_sizes(tower, image_px=chosen.image_px)
    tensors = TensorFolder.open(tower)
    tokenizer = TokenizerSource(tensors, sizes.tokenizer)
    head = sizes.rq_head if any(name.startswith(rq_head_name("")) for name in tensors.sizes) else None
    head_shapes = rq_head_shapes(head) if head else {}
    require_match(
        tensors.sizes,
        tokenizer.expected | {rq_head_name(name): shape for name, shape in head_shapes.items()},
        origin=str(tower),
        model=f"the image tokenizer that {CONFIG_NAME} describes",
        unused=tokenizer.unused,
    )
    num_bytes = tokenizer.write(folder)
    if head:
        num_bytes += _write_rq_head(folder / RQ_HEAD_FOLDER, tensors, head)
    return ConvertedVilaU(
        config=sizes.tokenizer,
        num_parameters=_count(tokenizer.shapes.values()),
        num_rq_head_parameters=_count(head_shapes.values()),
        num_bytes=num_bytes,
    )


class TokenizerSource:
    """The tensors of VILA-U's tokenizer in a folder.

    Attributes:
        config: sizes of the tokenizer.
        shapes: shapes of ufork's tensors, by ufork's names.
        expected: shapes of VILA-U's tensors, by the names in the folder.
        unused: patterns of names that may be in the folder and are not read.
    """

    def __init__(self, tensors: TensorFolder, config: VilaUConfig, *, prefix: str = "") -> None:
        """Reads nothing; `prefix` is what the folder puts before VILA-U's names."""
        self.config, self._tensors = config, tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in meta_network(config).state_dict().items()}
        self._origins = {name: prefix + tokenizer_name(name) for name in self.shapes}
        # all depths share one codebook, which files hold once or once per depth
        codebooks = re.compile(re.escape(prefix) + r"rqvaesiglip\.quantizer\.codebooks\.\d+\.weight")
        self._origins[CODEBOOK] = min(filter(codebooks.fullmatch, tensors.sizes), default=self._origins[CODEBOOK])
        self.expected = {self._origins[name]: shape for name, shape in self.shapes.items()}
        rows, width = self.shapes[CODEBOOK]
        self.expected[self._origins[CODEBOOK]] = (rows + PADDING_ROWS, width)
        last_layer = f"siglip_model.vision_model.encoder.layers.{config.num_hidden_layers}."
        self.unused = [re.escape(prefix) + pattern for pattern in (*UNUSED, rf"rqvaesiglip\.{re.escape(last_layer)}.*")]

    def write(self, folder: Path) -> int:
        """Writes a folder that `ImageCodec.load` reads; returns the size of the weights in bytes.

        The tensors must be as `expected`.

        Raises:
            NonFiniteError: a weight is NaN or infinite.
            StorageError: the folder cannot be written.
        """
        make_folder(folder)
        num_bytes = write_planned(folder / WEIGHTS_FILE, {name: self._planned(name) for name in self.shapes})
        write_whole(folder / CONFIG_FILE, config_text(self.config))
        return num_bytes

    def _planned(self, name: str) -> PlannedTensor:
        origin, shape = self._origins[name], self.shapes[name]
        size = TensorSize(shape, self._tensors.sizes[origin].dtype)
        return PlannedTensor(size, lambda: self._tensors.read(origin)[: shape[0]])


def rq_head_shapes(sizes: RqHeadSizes) -> dict[str, Shape]:
    """Returns the shapes of VILA-U's RQ head by the names of `RqHead`; the depth positions have one more dimension."""
    with torch.device("meta"), WithoutInitialization():
        head = RqHead(sizes.rq_head, sizes.dimensions, sizes.body_size)
    shapes = {name: tuple(parameter.shape) for name, parameter in head.named_parameters()}
    return {**shapes, DEPTH_POSITIONS: (1, *shapes[DEPTH_POSITIONS])}


def _write_rq_head(folder: Path, tensors: TensorFolder, sizes: RqHeadSizes) -> int:
    """Writes the RQ head by the names of a whole model's parameters; returns the size of the weights in bytes."""
    make_folder(folder)
    plan = {}
    for name, shape in rq_head_shapes(sizes).items():
        if name == DEPTH_POSITIONS:
            shape = shape[1:]
        plan[RQ_HEAD_PREFIX + name] = copy_of(tensors, rq_head_name(name), shape)
    num_bytes = write_planned(folder / WEIGHTS_FILE, plan)
    write_whole(folder / CONFIG_FILE, sizes.model_dump_json(indent=1) + "\n")
    return num_bytes


def _count(shapes: Iterable[Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes)
