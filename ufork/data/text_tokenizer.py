"""Text to token ids and back: any Hugging Face tokenizer folder, or a small byte-level BPE trained on the captions."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from ufork.data.config import padded_vocab_size
from ufork.errors import TokenizerError
from ufork.files import make_folder, write_whole
from ufork.vocabulary import PADDING, SPECIAL_TOKENS, TURN_END

FILE_NAME = "tokenizer.json"


class TextTokenizer:
    """A tokenizer with the special tokens of `ufork.vocabulary`, each as a single id."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in missing])
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
                return cls(Tokenizer.from_file(str(folder / FILE_NAME)))
            except Exception as error:  # tokenizers raises plain Exception
                raise TokenizerError(f"{folder / FILE_NAME}: not a tokenizer file ({error})") from None
        from transformers import AutoTokenizer  # seconds to import, and rarely needed

        try:
            return cls(AutoTokenizer.from_pretrained(str(folder)).backend_tokenizer)
        except (OSError, ValueError, AttributeError) as error:
            raise TokenizerError(
                f"{folder}: expected a Hugging Face tokenizer folder with {FILE_NAME} ({error})"
            ) from None

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
        tokenizer.train_from_iterator(texts, trainer)
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

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of `text` without adding any; special tokens in the text become their ids."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

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
