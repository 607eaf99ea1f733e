"""Text features of a model that transformers saved, against its own hidden states text by text."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    T5Config,
    T5Model,
)

from tests.tiny import tiny_tokenizer
from ufork.analysis.text_model import external_text_features
from ufork.errors import ConfigError

SIZES = dict(vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
TEXTS = ["a dog", "two red cats left of a house", "red"]
CPU = torch.device("cpu")


def models():
    return {
        "encoder": BertModel(BertConfig(**SIZES)),
        "decoder": Qwen2Model(Qwen2Config(**SIZES, num_key_value_heads=2)),
        "encoder and decoder": T5Model(
            T5Config(vocab_size=300, d_model=16, d_ff=32, num_layers=2, num_heads=2, d_kv=8)
        ),
    }


def save(model, folder):
    """A tokenizer's own class is not the one that transformers would choose for the model's."""
    model.save_pretrained(folder)
    tiny_tokenizer().save(folder)
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="<|endoftext|>").save_pretrained(
        folder
    )


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder and decoder"])
def test_features_are_means_over_each_texts_own_tokens(kind, tmp_path, capsys):
    torch.manual_seed(0)
    model = models()[kind].eval()
    save(model, tmp_path)
    capsys.readouterr()  # the progress of saving
    texts = [*TEXTS, "a red <|endoftext|> dog"]  # F8
    found = external_text_features(tmp_path, texts, layer=1, device=CPU)
    assert capsys.readouterr().err == ""
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    for text, features in zip(texts, found, strict=True):
        ids = torch.tensor([tiny_tokenizer().encode(text)])
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(features, states[0].mean(0), rtol=1e-4, atol=1e-5)


def test_a_folder_without_a_model_and_a_layer_that_is_not_there_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="empty: holds no text model"):
        (tmp_path / "empty").mkdir()
        external_text_features(tmp_path / "empty", TEXTS, layer=-1, device=CPU)
    save(models()["encoder"], tmp_path)
    with pytest.raises(ConfigError, match=r"text_layer=7: .* has layers 0 \(its embedding\) to 2"):
        external_text_features(tmp_path, TEXTS, layer=7, device=CPU)
