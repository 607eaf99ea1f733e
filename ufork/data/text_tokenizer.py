"""Text to token ids and back: any Hugging Face tokenizer folder, or a small byte-level BPE trained on the captions.

Texts are strangers'. `TextTokenizer.encode` is the one place where they become token ids, and none becomes a control
token there, whatever it holds.
"""

import json
import os
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Self

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from ufork.data.config import padded_vocab_size
from ufork.errors import TokenizerError
from ufork.files import Checksum, make_folder, open_regular, write_whole
from ufork.vocabulary import PADDING, SPECIAL_TOKENS, TURN_END, ControlToken, Prompt

FILE_NAME = "tokenizer.json"

_TRAINED_CHARS = 1024
"""Longer texts are cut for training, whose time grows with the square of the longest run of letters."""
_RARE = "ꙮ"
"""A letter that is in next to no vocabulary."""
_LEADS = (*range(0xC0, 0x800, 0x40), 0x800, *range(0x1000, 2**16, 0x1000), 2**16, *range(2**18, 2**20 + 1, 2**18))
_EVERY_BYTE = "".join(map(chr, (*range(0xC0), *_LEADS)))
"""Characters whose UTF-8 has every byte that can occur."""


class TextTokenizer:
    """A tokenizer with the special tokens of `ufork.vocabulary`, each as a single id."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        declared = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        tokenizer.add_special_tokens(
            [AddedToken(name, special=True) for name in SPECIAL_TOKENS if name not in declared]
        )
        tokenizer.encode_special_tokens = True  # as text: texts are strangers' and may name any token
        self._control_ids = self._find_control_ids()
        self.padding_id = self.id_of(PADDING)
        self.turn_end_id = self.id_of(TURN_END)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads `tokenizer.json`, or lets transformers convert the folder's slow tokenizer.

        Raises:
            TokenizerError: the folder is missing, or holds no tokenizer that either can read.
        """
        if not folder.is_dir():
            raise TokenizerError(f"{folder}: no such folder; `ufork tokenizer text RECIPE` makes a run's tokenizer")
        if (folder / FILE_NAME).is_file():
            try:
                os.close(open_regular(folder / FILE_NAME))
                tokenizer = Tokenizer.from_file(str(folder / FILE_NAME))
            except Exception as error:  # tokenizers raises plain Exception
                raise TokenizerError(f"{folder / FILE_NAME}: not a tokenizer file ({error})") from None
        else:
            from transformers import AutoTokenizer  # seconds to import, and rarely needed

            try:
                tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False).backend_tokenizer
            except Exception as error:  # of transformers, for folders of any content
                raise TokenizerError(
                    f"{folder}: expected a Hugging Face tokenizer folder with {FILE_NAME} ({error})"
                ) from None
        _check_every_character_is_encoded(tokenizer, folder)
        return cls(tokenizer)

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> Self:
        """Trains a byte-level BPE on `texts`; it can encode any string."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        cut = (text[start : start + _TRAINED_CHARS] for text in texts for start in range(0, len(text), _TRAINED_CHARS))
        tokenizer.train_from_iterator(cut, trainer)
        return cls(tokenizer)

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`.

        Raises:
            StorageError: the folder cannot be written.
        """
        write_whole(make_folder(folder) / FILE_NAME, self._tokenizer.to_str())

    def equals(self, other: "TextTokenizer") -> bool:
        """Whether both encode every text alike."""
        return self._tokenizer.to_str() == other._tokenizer.to_str()

    @property
    def checksum(self) -> str:
        """Checksum of all tokens with their ids."""
        return Checksum(json.dumps(sorted(self._tokenizer.get_vocab().items())).encode()).hexdigest()

    def encode(self, prompt: Prompt) -> list[int]:
        """Returns the token ids of `prompt` without adding any. No text becomes a control token, whatever it holds."""
        if isinstance(prompt, str):
            return self._encode_text(prompt)
        pieces = (
            [self.id_of(piece)] if isinstance(piece, ControlToken) else self._encode_text(piece) for piece in prompt
        )
        return list(chain.from_iterable(pieces))

    def _encode_text(self, text: str) -> list[int]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if self._control_ids.isdisjoint(encoding.ids):
            return encoding.ids
        # The vocabulary itself holds the token's name, as Unigram's does. The name in two pieces is no token.
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        cuts = [start + 1 for token, (start, end) in spans if token in self._control_ids and end - start > 1]
        if not cuts:
            return encoding.ids
        pieces = (text[start:end] for start, end in pairwise([0, *cuts, len(text)]))
        return list(chain.from_iterable(map(self._encode_text, pieces)))

    def _find_control_ids(self) -> frozenset[int]:
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token_id for token_id, token in added.items() if token.special}
        unknown = self._tokenizer.encode(_RARE, add_special_tokens=False).ids
        return frozenset(special.union(map(self.id_of, SPECIAL_TOKENS)).difference(unknown))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of `token_ids`, omitting special tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def id_of(self, special_token: str) -> int:
        """Returns the id of a token that must exist."""
        token_id = self._tokenizer.token_to_id(special_token)
        assert token_id is not None, special_token
        return token_id

    @property
    def size(self) -> int:
        """Size of the vocabulary: ids are below this number."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def padded_size(self) -> int:
        """Size of a model's vocabulary: `size`, rounded up to a multiple of PADDED_TO."""
        return padded_vocab_size(self.size)


def _check_every_character_is_encoded(tokenizer: Tokenizer, folder: Path) -> None:
    """Raises TokenizerError if a text may have characters that become no token."""
    text = tokenizer.normalizer.normalize_str(_EVERY_BYTE) if tokenizer.normalizer else _EVERY_BYTE
    pieces = [text]
    if tokenizer.pre_tokenizer:
        pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    for symbol in sorted(set().union(*pieces)):
        try:
            is_encoded = bool(tokenizer.model.tokenize(symbol))
        except Exception:  # of tokenizers, for want of an unknown token
            is_encoded = False
        if not is_encoded:
            raise TokenizerError(
                f"{folder}: the tokenizer has no token for {symbol!a}, nor one for unknown characters: texts would lose"
                " them; give it an unk_token, or train it on all bytes (initial_alphabet=ByteLevel.alphabet())"
            )
