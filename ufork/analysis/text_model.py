"""Text features of an external model: any encoder or decoder that transformers saved in a folder.

texts -> its tokenizer -> hidden states of one layer -> mean over a text's tokens
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ufork.errors import ConfigError

log = logging.getLogger(__name__)

BATCH_TEXTS = 32
MAX_TOKENS = 512
"""Longer texts are cut off."""


@torch.inference_mode()
def external_text_features(folder: Path, texts: Sequence[str], *, layer: int, device: torch.device) -> Tensor:
    """Returns features NE in fp32 on the CPU; nothing is downloaded, and no code of the folder is run.

    Args:
        folder: a model and its tokenizer, as transformers' `save_pretrained` leaves them.
        texts: N texts.
        layer: whose output is pooled; -1 is the last, 0 the embedding.
        device: where the model runs.

    Raises:
        ConfigError: the folder holds no such model, or the model has no such layer.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with _no_progress_bar():
            model = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"{folder}: holds no text model that transformers can load ({str(error).splitlines()[0]}); give a folder"
            " with config.json, weights and tokenizer, as `save_pretrained` writes it"
        ) from error
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    model = model.to(device).eval()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    features, num_cut = [], 0
    for start in range(0, len(texts), BATCH_TEXTS):
        batch = list(texts[start : start + BATCH_TEXTS])
        encoded = tokenizer(
            batch,
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            split_special_tokens=True,  # names of control tokens in a text are text
        )
        num_cut += int((encoded["attention_mask"].sum(1) == MAX_TOKENS).sum())
        arguments = {name: encoded[name].to(device) for name in ("input_ids", "attention_mask")}
        layers = model(**arguments, output_hidden_states=True).hidden_states
        if layers is None:
            raise ConfigError(f"{folder}: the model gives no features of its layers; name a text model of transformers")
        if not -len(layers) <= layer < len(layers):
            raise ConfigError(f"text_layer={layer}: {folder} has layers 0 (its embedding) to {len(layers) - 1}")
        mask_BL1 = arguments["attention_mask"][:, :, None]
        features.append(((layers[layer].float() * mask_BL1).sum(1) / mask_BL1.sum(1)).cpu())
    if num_cut:
        log.warning("%s: %d texts are cut off after %d tokens", folder, num_cut, MAX_TOKENS)
    return torch.cat(features)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Silences transformers' bar of the weights that it loads, which it shows in logs of jobs, too."""
    from transformers.utils import logging as transformers_logging

    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
