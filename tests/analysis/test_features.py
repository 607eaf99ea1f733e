"""Features of every layer against hidden states that are computed pair by pair, layer by layer."""

import errno
import os

import numpy as np
import pytest
import torch

from tests.infer.test_model import save_trained
from tests.tiny import DIMENSIONS, tiny_config, tiny_model
from ufork.analysis import features
from ufork.analysis.features import collect_features
from ufork.analysis.pairs import CAPTION_QUESTION, Pair
from ufork.data.prompts import generation_prompt, question_prompt
from ufork.errors import StorageError
from ufork.infer.model import TrainedModel
from ufork.model.layers.attention import PackedAttention
from ufork.model.layers.rotary import Rotary
from ufork.vocabulary import TURN_END, Task

TEXTS = ["a dog", "two red cats", "a house", "dogs and a cat", "red"]


@pytest.fixture(scope="module", params=[0, 1], ids=["Y", "separate first layers"])
def trained(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("trained") / "weights"
    save_trained(folder, tiny_config(generation_layers=2, separate_first_layers=request.param))
    return TrainedModel.load(folder)


@pytest.fixture(scope="module")
def pairs(trained):
    generator = np.random.default_rng(0)
    shape = (trained.codec.grid_rows, trained.codec.grid_columns, DIMENSIONS.codes_per_position)
    return [
        Pair(id=text, codes_YXC=generator.integers(0, DIMENSIONS.codebook_size, shape).astype(np.uint16), text=text)
        for text in TEXTS
    ]


def hidden_states(trained, token_ids, codes, image_begin, task):
    """The states TD before the first layer and after each, of one sample, by calling the layers one by one."""
    from ufork.data.packing import pack_sequence
    from ufork.data.prompts import EncodedSample
    from ufork.vocabulary import IGNORED_LABEL

    labels = np.full(len(token_ids), IGNORED_LABEL)
    labels[-1] = 0
    sample = EncodedSample(
        id="",
        task=task,
        token_ids_L=np.array(token_ids),
        labels_L=labels,
        image_begin=image_begin,
        codes_IC=codes,
    )
    packed = pack_sequence([sample], seq_len=len(token_ids), padding_id=trained.tokenizer.padding_id)
    model = tiny_model(trained.model.config)
    model.set_codebook(trained.codec.codebook)
    hidden = model.trunk.embed(packed)
    config = model.config
    rotary = Rotary(packed.positions_T, head_dim=config.head_dim, theta=config.rope_theta, dtype=torch.float32)
    states = [hidden]
    first = model.trunk.first_stacks[task].layers if config.separate_first_layers else []
    for layer in [*first, *model.trunk.stack.layers, *model.branches[task].stack.layers]:
        hidden = layer(hidden, rotary, PackedAttention(packed, model.kernel))
        states.append(hidden)
    return [state.detach() for state in states]


def expected_states(trained, pair, task, side):
    """The states of the sample that a side is read from, and the positions of its tokens."""
    encode, padding = trained.tokenizer.encode, trained.tokenizer.padding_id
    codes = pair.codes_YXC.reshape(-1, pair.codes_YXC.shape[-1]).astype(np.int64)
    image = [padding] * (len(codes) + 2)
    if task is Task.GENERATION:
        text = encode(generation_prompt(pair.text))
        begin, token_ids = len(text), text + image
        where = range(len(text)) if side == "text" else range(begin + 1, begin + 1 + len(codes))
    else:
        text = encode(question_prompt(CAPTION_QUESTION)) + encode((pair.text, TURN_END))
        if side == "text":
            return hidden_states(trained, text, np.zeros((0, 1), np.int64), None, task), range(len(text))
        begin, token_ids, where = 0, image + text, range(1, 1 + len(codes))
    return hidden_states(trained, token_ids, codes, begin, task), where


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("task", Task)
def test_features_are_the_pooled_states_of_each_layer(trained, pairs, task, pooling, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SEQUENCE_TOKENS", 40)  # several packed sequences
    files = collect_features(trained, pairs, task, tmp_path, pooling=pooling)
    assert files.num_layers == 1 + trained.model.config.path_layers(task)
    for side in features.SIDES:
        for number, pair in enumerate(pairs):
            states, where = expected_states(trained, pair, task, side)
            for layer, state in enumerate(states):
                rows = state[list(where)]
                expected = rows.mean(0) if pooling == "mean" else rows[-1]
                found = files.read(side, layer)[number]
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_no_hook_stays_on_the_model(trained, pairs, tmp_path):
    collect_features(trained, pairs, Task.GENERATION, tmp_path)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trained.model.modules())


def test_a_full_disk_is_an_error_and_does_not_kill_the_process(trained, pairs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\)"):
        collect_features(trained, pairs, Task.GENERATION, tmp_path)
