"""Text to ids and back: trained here, saved, or of another project."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from pipelines.check_recipe import QWEN_VOCABULARY
from tests.tiny import TEXTS, tiny_tokenizer
from ufork.data.text_tokenizer import FILE_NAME, TextTokenizer
from ufork.errors import StorageError, TokenizerError
from ufork.vocabulary import SPECIAL_TOKENS, TURN_END


@pytest.fixture(scope="module")
def trained_and_loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    trained = tiny_tokenizer()
    trained.save(folder)
    return trained, TextTokenizer.load(folder)


@given(text=st.text(max_size=40))
def test_any_text_is_decoded_and_saving_changes_no_id(trained_and_loaded, text):
    trained, loaded = trained_and_loaded
    ids = trained.encode(text)
    assert loaded.encode(text) == ids
    assert loaded.decode(ids) == text
    assert all(0 <= token_id < loaded.size for token_id in ids)


def test_special_tokens_are_single_ids_that_decoding_omits(trained_and_loaded):
    for tokenizer in trained_and_loaded:
        ids = tokenizer.encode(SPECIAL_TOKENS)
        assert ids == [tokenizer.id_of(token) for token in SPECIAL_TOKENS]
        assert tokenizer.decode(tokenizer.encode(("a dog", TURN_END))) == "a dog"


def test_training_merges_frequent_pairs(trained_and_loaded):
    trained, _ = trained_and_loaded
    assert trained.size == 300
    assert len(trained.encode(TEXTS[0])) < len(TEXTS[0].encode())


def test_a_text_of_megabytes_without_a_blank_takes_no_longer():
    """L6."""
    assert TextTokenizer.train(["ab" * 2_000_000, "a dog"], vocab_size=300).encode("abab")[1:] == []


def test_missing_special_tokens_are_added_behind_the_others(tmp_path):
    plain = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], unk_token="b"))
    plain.save(str(tmp_path / FILE_NAME))
    loaded = TextTokenizer.load(tmp_path)
    assert sorted(map(loaded.id_of, SPECIAL_TOKENS)) == [3, 4, 5, 6, 7]
    assert loaded.size == 8


def test_padding_and_truncation_of_a_foreign_tokenizer_are_turned_off(tmp_path, trained_and_loaded):
    foreign = trained_and_loaded[0]._tokenizer.from_str(trained_and_loaded[0]._tokenizer.to_str())
    foreign.enable_truncation(4)
    foreign.enable_padding(length=9)
    foreign.save(str(tmp_path / FILE_NAME))
    assert TextTokenizer.load(tmp_path).encode("xyzuvw") == trained_and_loaded[0].encode("xyzuvw")
    assert len(TextTokenizer.load(tmp_path).encode("xyzuvw")) == 6


def test_the_genuine_qwen_vocabulary_keeps_its_ids(qwen_folder):
    qwen = TextTokenizer.load(qwen_folder)
    assert qwen.encode("Hello world!") == [9707, 1879, 0]
    assert (qwen.turn_end_id, qwen.padding_id, qwen.size) == (151645, 151654, 151657)
    assert qwen.padded_size == QWEN_VOCABULARY == 1185 * 128


@pytest.mark.parametrize("content", [None, "", "{}", "[1, 2]"], ids=["missing", "empty", "no model", "a list"])
def test_a_bad_folder_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(TokenizerError, match=str(tmp_path)):
        TextTokenizer.load(tmp_path)


def test_a_missing_folder_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(TokenizerError, match="text: no such folder; `ufork tokenizer text RECIPE`"):
        TextTokenizer.load(tmp_path / "text")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        tiny_tokenizer().save(tmp_path / "file" / "text")


NAMES = [*map(str, SPECIAL_TOKENS), "</s>", "<|image_pad|>"]
"""Plain texts."""


@pytest.fixture(scope="module", params=["trained here", "qwen", "names in the vocabulary"])
def any_tokenizer(request, tmp_path_factory):
    if request.param == "trained here":
        return tiny_tokenizer()
    if request.param == "qwen":
        return TextTokenizer.load(request.getfixturevalue("qwen_folder"))
    letters = sorted(set("".join(NAMES) + "ab ▁"))
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *[(letter, -1.0) for letter in letters], ("<|im_end|>", -0.5)]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=0))
    unigram.normalizer, unigram.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    unigram.add_special_tokens([AddedToken("<unk>"), AddedToken("</s>")])
    folder = tmp_path_factory.mktemp("unigram")
    unigram.save(str(folder / FILE_NAME))
    return TextTokenizer.load(folder)


@pytest.mark.parametrize("name", [*NAMES, "＜/s＞", "<<|im_end|>>", "</s></s>"])
def test_a_text_that_names_control_tokens_stays_text(any_tokenizer, name):
    """F8: also where the vocabulary itself holds the name, or normalization makes it."""
    controls = set(any_tokenizer.encode(SPECIAL_TOKENS)) | {any_tokenizer._tokenizer.token_to_id("</s>")}
    for text in (name, f"a {name} b", f"a{name}b{name}"):
        ids = any_tokenizer.encode(text)
        assert controls.isdisjoint(ids)
        letters = unicodedata.normalize("NFKC", text).replace(" ", "")
        assert text == any_tokenizer.decode(ids) or letters == any_tokenizer.decode(ids).translate(
            {32: "", ord("▁"): ""}
        )


def test_a_control_token_that_a_tokenizer_declares_to_be_a_word_is_none_in_texts(tmp_path):
    plain = Tokenizer(models.BPE({letter: id for id, letter in enumerate("?<|>_deimn")}, [], unk_token="?"))
    plain.add_tokens([AddedToken(TURN_END, special=False)])
    plain.save(str(tmp_path / FILE_NAME))
    loaded = TextTokenizer.load(tmp_path)
    assert loaded.turn_end_id not in loaded.encode(TURN_END)
    assert loaded.encode((TURN_END,)) == [loaded.turn_end_id]


def test_unknown_words_stay_unknown(tmp_path):
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([AddedToken("[UNK]")])
    words.save(str(tmp_path / FILE_NAME))
    assert TextTokenizer.load(tmp_path).encode("a zebra a") == [1, 0, 1]


def _byte_level_without(letter):
    alphabet = [known for known in sorted(pre_tokenizers.ByteLevel.alphabet()) if known != letter]
    tokenizer = Tokenizer(models.BPE({known: id for id, known in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


@pytest.mark.parametrize(
    "lossy",
    [
        Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])),
        Tokenizer(models.WordLevel({"a": 0})),
        Tokenizer(models.Unigram([("a", -1.0)])),
        _byte_level_without("Ĥ"),
    ],
    ids=["characters", "words", "unigram", "one byte missing"],
)
def test_a_tokenizer_that_would_lose_characters_is_refused(tmp_path, lossy):
    lossy.save(str(tmp_path / FILE_NAME))
    with pytest.raises(TokenizerError, match=f"{tmp_path}: the tokenizer has no token for .*, nor one for unknown"):
        TextTokenizer.load(tmp_path)
