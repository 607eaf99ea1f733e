"""Folders of weights to export, and what ufork's own modules compute with them."""

from pathlib import Path

import numpy as np
import torch

from tests.tiny import DIMENSIONS, tiny_model, tiny_tokenizer
from ufork.data.packing import pack_sequence
from ufork.data.prompts import EncodedSample
from ufork.infer.config import DrawConfig
from ufork.infer.model import VISION_FOLDER, save_trained
from ufork.model.layers.attention import PackedAttention
from ufork.model.unifork import UniFork
from ufork.model.weights import WeightsConfig, load_weights, put_weights
from ufork.vision.autoencoder import RQVAE
from ufork.vision.codec import ImageCodec
from ufork.vision.config import RqvaeConfig
from ufork.vocabulary import IGNORED_LABEL, Task

IMAGE_PX = 16
DRAW = DrawConfig(guidance=1.5, top_p=0.9)
CODES = np.random.default_rng(3).integers(0, DIMENSIONS.codebook_size, (2, 2, DIMENSIONS.codes_per_position))
TOKENS_PER_IMAGE = CODES[..., 0].size + 2


def save_weights(folder: Path, config, network=None) -> Path:
    """Writes random weights, large enough that choices depend on all that the model sees."""
    model, generator = tiny_model(config), torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        spread = 2 * parameter.shape[1] ** -0.5 if parameter.dim() > 1 else 0.1
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=spread, generator=generator)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    torch.manual_seed(0)
    sizes = DIMENSIONS.model_dump(exclude={"vocab_size"})
    codec = ImageCodec(network or RQVAE(RqvaeConfig(image_px=IMAGE_PX, patch_px=8, hidden_width=16, **sizes)))
    save_trained(folder, weights, WeightsConfig(model=config, dimensions=DIMENSIONS), tiny_tokenizer(), codec, DRAW)
    return folder


def own_logits(
    folder: Path, task: Task, token_ids: list[int], image_begin: int | None = None, codes_YXC: np.ndarray = CODES
) -> torch.Tensor:
    """Returns the logits of ufork's modules, TV of the text or ICK of the image."""
    weights, config = load_weights(folder)
    model = UniFork(config.model, config.dimensions)
    put_weights(model, weights, origin="")
    model.set_codebook(ImageCodec.load(folder / VISION_FOLDER).codebook)
    encoded = EncodedSample(
        id="",
        task=task,
        token_ids_L=np.array(token_ids),
        labels_L=np.full(len(token_ids), IGNORED_LABEL),
        image_begin=image_begin,
        codes_IC=codes_YXC.reshape(-1, codes_YXC.shape[-1])[: None if image_begin is not None else 0],
    )
    packed = pack_sequence([encoded], seq_len=len(token_ids), padding_id=0)
    attend, branch = PackedAttention(packed, model.kernel), model.branches[task]
    with torch.no_grad():
        states_TD = branch.states(model.trunk(packed, attend), packed.positions_T, attend)
        if task is Task.UNDERSTANDING:
            return branch.head.logits(states_TD)
        states_ID = states_TD[packed.image_positions_I - 1]
        return branch.head.out(branch.head.states(states_ID, branch.code_embedding(packed.codes_IC)))


def random_image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (IMAGE_PX, IMAGE_PX, 3), np.uint8)
