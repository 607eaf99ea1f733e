"""Requests in an engine: each as if it were alone, whatever comes, goes or fails beside it."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import DIMENSIONS, tiny_config, tiny_model, tiny_tokenizer
from ufork.data.prompts import dropped_prompt, generation_prompt
from ufork.errors import CancelledError, ConfigError, NonFiniteError, QueueFullError
from ufork.infer.config import AnswerConfig, DrawConfig, EngineConfig
from ufork.infer.engine import Engine
from ufork.infer.model import TrainedModel
from ufork.infer.slots import run_together
from ufork.vision.autoencoder import RQVAE
from ufork.vision.codec import ImageCodec
from ufork.vision.config import VisionConfig
from ufork.vocabulary import Task

PROMPTS = ["a dog", "x", "three green stars and a house", "two apples left of a cat"]
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
FEW = EngineConfig(max_drawings=2, max_answers=2, prefill_tokens=40)


def with_tokenizers(body):
    torch.manual_seed(0)
    sizes = DIMENSIONS.model_dump(exclude={"vocab_size"})
    codec = ImageCodec(RQVAE(VisionConfig(image_px=16, patch_px=8, hidden_width=16, **sizes)))
    body.set_codebook(codec.codebook)
    return TrainedModel(body, tiny_tokenizer(), codec)


@pytest.fixture(scope="module")
def trained(model):
    return with_tokenizers(model)


def finish(engine):
    while engine.step():
        pass


DRAWINGS = st.builds(
    DrawConfig,
    guidance=st.sampled_from([1.0, 1.5, 4.0]),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_k=st.sampled_from([0, 1, 5, 900]),
    top_p=st.sampled_from([0.5, 0.96, 1.0]),
    seed=st.integers(0, 99),
)
ANSWERS = st.builds(
    AnswerConfig,
    max_tokens=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_k=st.sampled_from([0, 1, 5]),
    top_p=st.sampled_from([0.5, 1.0]),
    seed=st.integers(0, 99),
)
REQUESTS = st.lists(st.tuples(st.integers(0, 3), DRAWINGS | ANSWERS, st.integers(0, 3)), min_size=1, max_size=8)


@given(requests=REQUESTS)
@settings(max_examples=8, deadline=None)
def test_every_request_gives_what_it_gives_alone(trained, requests):
    """Requests come a few steps apart, and more than there are slots for."""
    engine, replies = Engine(trained, FEW), []
    for number, config, num_steps in requests:
        if isinstance(config, DrawConfig):
            replies.append(engine.draw(PROMPTS[number], config))
        else:
            replies.append(engine.answer(IMAGES[number], PROMPTS[number], config))
        for _ in range(num_steps):
            engine.step()
    finish(engine)
    for (number, config, _), reply in zip(requests, replies, strict=True):
        if isinstance(config, DrawConfig):
            assert np.array_equal(reply.result(), trained.draw([PROMPTS[number]], config)[0])
        else:
            assert reply.result() == trained.answer(IMAGES[number : number + 1], [PROMPTS[number]], config)[0]


def test_both_tasks_pass_the_trunk_in_the_same_products(trained):
    engine = Engine(trained)
    engine.draw("a dog", DrawConfig(guidance=4.0))
    engine.draw("a cat", DrawConfig(guidance=1.0))
    engine.answer(IMAGES[0], "what?", AnswerConfig(max_tokens=9))
    engine.step()
    rows = []
    hook = trained.model.trunk.stack.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    engine.step()
    hook.remove()
    assert rows == [2 + 1 + 1]


def test_requests_that_come_during_a_step_start_in_it_and_change_no_other(trained, monkeypatch):
    """The second answer ends at once, and the third drawing has no slot until the first one ends."""
    asked = [
        lambda engine: engine.draw("a cat", DrawConfig(seed=2)),
        lambda engine: engine.answer(IMAGES[1], "x", AnswerConfig(max_tokens=1)),
        lambda engine: engine.draw("x", DrawConfig(seed=3, guidance=1.0)),
    ]
    engine, parts = Engine(trained, FEW), []
    replies = [engine.draw("a dog", DrawConfig(seed=1)), engine.answer(IMAGES[0], "what?", AnswerConfig(max_tokens=4))]

    def during_a_step(*arguments):
        if asked:
            replies.append(asked.pop(0)(engine))
        return run_together(*arguments)

    monkeypatch.setattr("ufork.infer.engine.run_together", during_a_step)
    while engine.step():
        parts.append([len(reply.parts) for reply in replies])
    assert parts[:3] == [[2, 2, 1], [3, 3, 2, 1], [4, 4, 3, 1, 0]]
    for reply, prompt, config in ((0, "a dog", DrawConfig(seed=1)), (2, "a cat", DrawConfig(seed=2))):
        assert np.array_equal(replies[reply].result(), trained.draw([prompt], config)[0])
    assert np.array_equal(replies[4].result(), trained.draw(["x"], DrawConfig(seed=3, guidance=1.0))[0])
    assert replies[1].result() == trained.answer(IMAGES[:1], ["what?"], AnswerConfig(max_tokens=4))[0]
    assert replies[3].result() == trained.answer(IMAGES[1:2], ["x"], AnswerConfig(max_tokens=1))[0]


def test_slots_are_for_the_first_requests_and_of_these_the_shortest_prompts_run_first(trained):
    engine, order = Engine(trained, EngineConfig(max_drawings=2, prefill_tokens=1)), []
    for prompt in ("a prompt of some words", "two words", "x", "y"):
        engine.draw(prompt, notify=lambda _, prompt=prompt: order.append(prompt))
    engine.answer(IMAGES[0], "x", notify=lambda _: order.append("x?"))
    engine.step()
    assert list(dict.fromkeys(order)) == ["x?", "two words", "a prompt of some words"]


def test_the_prompt_without_a_caption_is_run_once(trained):
    engine, num_tokens = Engine(trained), []
    hook = trained.model.trunk.stack.register_forward_pre_hook(lambda _, inputs: num_tokens.append(len(inputs[0])))
    captions = ["a dog", "x"]
    for caption in captions:
        engine.draw(caption, DrawConfig(guidance=4.0))
    engine.step()
    engine.draw("a dog", DrawConfig(guidance=4.0))
    engine.step()
    hook.remove()
    lengths = [len(trained.tokenizer.encode(text)) + 1 for text in map(generation_prompt, captions)]
    assert num_tokens == [sum(lengths), len(trained.tokenizer.encode(dropped_prompt())) + 1, 4, lengths[0], 6]


def test_parts_come_before_the_end_and_pictures_grow(trained):
    engine = Engine(trained)
    drawing = engine.draw("a dog", DrawConfig(seed=3))
    answer = engine.answer(IMAGES[0], "what?", AnswerConfig(max_tokens=9))
    assert not drawing.parts and (drawing.image() == 127).all()
    engine.step()
    assert [part.index for part in drawing.parts] == [0, 1] and len(answer.parts) == 2
    half = drawing.image()
    assert (half[8:] == 127).all() and not (half[:8] == 127).all()
    finish(engine)
    assert np.array_equal(drawing.image()[:8], half[:8]), "this codec decodes each position alone"
    assert drawing.codes.shape == (4, DIMENSIONS.codes_per_position)
    assert [part.index for part in drawing] == [0, 1, 2, 3]
    assert "".join(part.text for part in answer) == answer.text == answer.result()


class Spelled:
    """A tokenizer whose answers spell characters of several bytes."""

    def __init__(self, tokenizer, text):
        self.tokens = tokenizer.encode(text)
        self.encode, self.padding_id, self.turn_end_id = tokenizer.encode, tokenizer.padding_id, -1
        self.decode = lambda token_ids: tokenizer.decode(self.tokens[: len(token_ids)])


@pytest.mark.parametrize("text", ["  ein Kätzchen 🐈 ", "🐈‍⬛", "a\N{REPLACEMENT CHARACTER} b "])
def test_streamed_text_is_whole_characters_and_adds_up_to_the_answer(trained, text):
    tokenizer = Spelled(trained.tokenizer, text)
    model = TrainedModel(trained.model, tokenizer, trained.codec)
    engine = Engine(model)
    reply = engine.answer(IMAGES[0], "what?", AnswerConfig(max_tokens=len(tokenizer.tokens)))
    finish(engine)
    assert reply.result() == text.strip()
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in part.text for part in reply.parts)


def test_an_answer_ends_at_the_end_of_turn(trained):
    engine = Engine(trained)
    whole = engine.answer(IMAGES[0], "what?", AnswerConfig(max_tokens=9))
    finish(engine)
    ids = [part.token_id for part in whole.parts]
    tokenizer = trained.tokenizer
    ending = Spelled(tokenizer, "")
    ending.decode, ending.turn_end_id = tokenizer.decode, ids[4]
    engine = Engine(TrainedModel(trained.model, ending, trained.codec))
    reply = engine.answer(IMAGES[0], "what?", AnswerConfig(max_tokens=9))
    finish(engine)
    assert [part.token_id for part in reply.parts] == ids[: ids.index(ids[4]) + 1]


def test_a_full_queue_refuses_and_takes_again_when_there_is_room(trained):
    engine = Engine(trained, EngineConfig(max_drawings=1, max_waiting=2))
    replies = [engine.draw("a dog"), engine.draw("a dog")]
    with pytest.raises(QueueFullError, match=r"2 requests are waiting, as many as this engine allows \(max_waiting\)"):
        engine.draw("a dog")
    engine.step()
    replies.append(engine.draw("a dog"))
    finish(engine)
    assert len({reply.result().tobytes() for reply in replies}) == 1
    assert engine.num_waiting == engine.num_running == 0


def test_a_cancelled_request_frees_its_slot_and_changes_no_other(trained):
    engine = Engine(trained, EngineConfig(max_drawings=2, max_waiting=4))
    replies = [engine.draw(prompt, DrawConfig(seed=number)) for number, prompt in enumerate(PROMPTS)]
    engine.step()
    replies[0].cancel()
    replies[2].cancel()
    assert engine.num_running == 2
    finish(engine)
    for number in (0, 2):
        with pytest.raises(CancelledError, match="was cancelled"):
            replies[number].result()
    assert len(replies[0].parts) == 2 and not replies[2].parts
    for number in (1, 3):
        expected = trained.draw([PROMPTS[number]], DrawConfig(seed=number))[0]
        assert np.array_equal(replies[number].result(), expected)


def test_the_error_of_one_request_ends_no_other(trained, monkeypatch):
    def failing(reply):
        if len(reply.parts) == 2:
            raise ValueError("the browser is gone")

    encode = trained.codec.encode
    monkeypatch.setattr(trained.codec, "encode", lambda images: encode(images) if images.any() else 1 / 0)
    engine = Engine(trained)
    fails = engine.draw("a dog", notify=failing)
    unreadable = engine.answer(np.zeros_like(IMAGES[0]), "what?")
    replies = engine.draw("x", DrawConfig(seed=1)), engine.answer(IMAGES[0], "what?", AnswerConfig(max_tokens=5))
    finish(engine)
    with pytest.raises(ValueError, match="the browser is gone"):
        fails.result()
    with pytest.raises(ZeroDivisionError):
        list(unreadable)
    assert np.array_equal(replies[0].result(), trained.draw(["x"], DrawConfig(seed=1))[0])
    assert replies[1].result() == trained.answer(IMAGES[:1], ["what?"], AnswerConfig(max_tokens=5))[0]


def test_values_that_are_not_finite_end_their_request_alone_and_leave_nothing_in_the_cache():
    body = tiny_model()
    model = with_tokenizers(body)
    poisoned = model.tokenizer.encode("~")[0]
    with torch.no_grad():
        body.trunk.token_embedding.weight[poisoned] = torch.nan
    engine = Engine(model, EngineConfig(max_drawings=2, max_waiting=9))
    prompts = [
        "~ and a long prompt, all of whose keys are not numbers",
        "x",
        "a prompt whose rows make others read far",
    ]
    replies = [engine.draw(prompt, DrawConfig(seed=1)) for prompt in prompts]
    finish(engine)
    with pytest.raises(NonFiniteError, match="not finite for this request"):
        replies[0].result()
    for prompt, reply in zip(prompts[1:], replies[1:], strict=True):
        assert np.array_equal(reply.result(), model.draw([prompt], DrawConfig(seed=1))[0])


def test_a_step_that_fails_ends_what_is_under_way_and_the_engine_goes_on(trained, caplog):
    engine = Engine(trained, EngineConfig(max_drawings=1))
    lost, waiting = engine.draw("a dog"), engine.draw("a dog")
    engine.step()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ufork.infer.engine.run_together", lambda *_: 1 / 0)
        engine.step()
    finish(engine)
    with pytest.raises(ZeroDivisionError):
        lost.result()
    assert np.array_equal(waiting.result(), trained.draw(["a dog"])[0])
    assert "all requests under way have ended" in caplog.text


def test_prompts_that_cannot_be_run_end_their_requests_alone(trained, monkeypatch):
    engine = Engine(trained)
    running = engine.draw("a dog", DrawConfig(seed=2))
    engine.step()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ufork.infer.running.run_prompts", lambda *_, **__: 1 / 0)
        lost = engine.draw("a cat")
        engine.step()
    finish(engine)
    with pytest.raises(ZeroDivisionError):
        lost.result()
    assert np.array_equal(running.result(), trained.draw(["a dog"], DrawConfig(seed=2))[0])


def test_threads_ask_and_read_while_the_engine_computes(trained):
    results = {}

    def ask(number):
        reply = engine.draw(PROMPTS[number % 4], DrawConfig(seed=number))
        results[number] = [part.codes for part in reply], reply.result(timeout_seconds=60)

    with Engine(trained, FEW) as engine:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for number, (codes, image) in results.items():
        expected = trained.draw([PROMPTS[number % 4]], DrawConfig(seed=number))[0]
        assert np.array_equal(image, expected) and len(codes) == 4
    assert len(results) == 12


def test_notified_threads_see_every_part_and_the_end(trained):
    seen = []
    with Engine(trained) as engine:
        engine.draw("a dog", notify=lambda reply: seen.append((len(reply.parts), reply.has_ended))).result(60)
    assert seen == [(1, False), (2, False), (3, False), (4, False), (4, True)]


def test_closing_ends_requests_and_refuses_new_ones(trained):
    with Engine(trained, EngineConfig(max_drawings=1)) as engine:
        replies = [engine.draw("a dog") for _ in range(20)]
    for reply in replies[-1:]:
        with pytest.raises(CancelledError, match="engine was closed"):
            reply.wait(60)
    assert all(reply.has_ended for reply in replies)
    with pytest.raises(CancelledError, match="engine is closed"):
        engine.draw("a dog")


def test_an_engine_that_stops_ends_all_requests(trained, monkeypatch, caplog):
    monkeypatch.setattr(Engine, "_next_chunk", lambda self: 1 / 0)
    with Engine(trained) as engine:
        with pytest.raises(ZeroDivisionError):
            engine.draw("a dog").result(60)
        with pytest.raises(CancelledError, match="engine is closed"):
            engine.draw("a dog")
    assert "the engine has stopped" in caplog.text


def test_waiting_has_a_limit(trained):
    with pytest.raises(TimeoutError, match=r"no reply after 0.01 s"):
        Engine(trained).draw("a dog").wait(timeout_seconds=0.01)


@pytest.mark.parametrize(
    ("ask", "fault"),
    [
        (lambda engine: engine.draw(" "), "none of them empty"),
        (lambda engine: engine.draw("a" * 200), r"a prompt has \d+ tokens, this engine reads 50 \(max_prompt_tokens\)"),
        (lambda engine: engine.answer(IMAGES[0], ""), "none of them empty"),
        (lambda engine: engine.answer(IMAGES[0, :8], "what?"), r"expected an image of uint8 \(16, 16, 3\), found"),
        (lambda engine: engine.answer(IMAGES[0] / 255, "what?"), r"found float64 \(16, 16, 3\)"),
        (
            lambda engine: engine.answer(IMAGES[0], "what?", AnswerConfig(max_tokens=9)),
            r"max_tokens is 9, this engine allows 8 \(max_answer_tokens\)",
        ),
    ],
)
def test_requests_at_fault_are_refused_at_once(trained, ask, fault):
    with pytest.raises(ConfigError, match=fault):
        ask(Engine(trained, EngineConfig(max_prompt_tokens=50, max_answer_tokens=8)))


def test_a_model_of_one_task_refuses_the_other():
    engine = Engine(with_tokenizers(tiny_model(tiny_config(tasks=(Task.GENERATION,)))))
    reply = engine.draw("a dog")
    finish(engine)
    assert reply.result().shape == (16, 16, 3)
    with pytest.raises(ConfigError, match="no understanding branch"):
        engine.answer(IMAGES[0], "what?")


def test_in_bf16_requests_are_drawn_and_answered():
    engine = Engine(with_tokenizers(tiny_model().bfloat16()))
    replies = engine.draw("a dog"), engine.answer(IMAGES[0], "what?", AnswerConfig(max_tokens=5))
    finish(engine)
    assert replies[0].result().shape == (16, 16, 3) and len(replies[1].parts) <= 5


@pytest.mark.gpu
def test_cuda_draws_and_answers_as_the_cpu_does(model):
    on_cuda = tiny_model(model.config).to("cuda")
    on_cuda.load_state_dict(model.state_dict())
    cpu, cuda = with_tokenizers(model), with_tokenizers(on_cuda)
    results = []
    for trained in (cpu, TrainedModel(cuda.model, cuda.tokenizer, cuda.codec.on(torch.device("cuda")))):
        engine = Engine(trained, FEW)
        drawings = [engine.draw(prompt, DrawConfig(seed=number)) for number, prompt in enumerate(PROMPTS)]
        answers = [engine.answer(image, prompt) for image, prompt in zip(IMAGES, PROMPTS, strict=True)]
        finish(engine)
        results.append(([reply.codes.tolist() for reply in drawings], [reply.result() for reply in answers]))
    assert results[0] == results[1]
