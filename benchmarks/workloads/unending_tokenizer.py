"""A text tokenizer that lets no answer end early, for timing a fixed number of tokens."""

from ufork.data.text_tokenizer import TextTokenizer


class UnendingTokenizer:
    """A tokenizer without an end of turn."""

    turn_end_id = -1

    def __init__(self, tokenizer: TextTokenizer):
        self.encode, self.padding_id, self._tokenizer = tokenizer.encode, tokenizer.padding_id, tokenizer
        self._size = tokenizer.size  # which lists the vocabulary

    def decode(self, token_ids: list[int]) -> str:
        """Returns some text: the tokens of random weights may be ones that the tokenizer does not have."""
        return self._tokenizer.decode([token % self._size for token in token_ids])
