"""Static steps draw and answer as growing ones do, and can be replayed as a CUDA graph; and where they cannot."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.infer.recorded_graph import RecordedSteps
from tests.tiny import DIMENSIONS, tiny_config, tiny_model
from ufork.infer.answer import answer_questions
from ufork.infer.cache import Extend, KeyValueCache
from ufork.infer.config import AnswerConfig, DrawConfig
from ufork.infer.draw import Drawing, draw_codes, prompt_sequences
from ufork.infer.steps import FEWEST_REPLAYS, STEPS_PER_CHECK, WARM_UP_STEPS, EagerSteps, GraphSteps, steps_on
from ufork.model.unifork import UniFork

PROMPTS = ["a red dog", "x", "three green stars and a house", "two apples left of a cat"]
NUM_POSITIONS = WARM_UP_STEPS + FEWEST_REPLAYS + 4


@pytest.fixture(autouse=True, scope="module")
def sorting_as_on_cuda():
    """Sorts in torch, as graphs do: numpy, which sorts on CPUs, would run at a capture and never in a replay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ufork.infer.sampling._largest", lambda logits_BK, _: logits_BK.sort(dim=-1, descending=True))
        yield


def draw(model, tokenizer, steps, prompts=PROMPTS[:3], *, num_positions=NUM_POSITIONS, seed=0, **changes):
    config = DrawConfig(**{"guidance": 3.0} | changes)
    seeds = range(seed, seed + len(prompts))
    return draw_codes(model, tokenizer, prompts, config, num_positions=num_positions, seeds=seeds, steps=steps)


@given(
    prompts=st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=4),
    guidance=st.sampled_from([1.0, 4.0]),
    temperature=st.sampled_from([0.0, 1.0]),
    num_positions=st.sampled_from([1, 2, WARM_UP_STEPS + FEWEST_REPLAYS, NUM_POSITIONS]),
    seed=st.integers(0, 99),
)
@settings(max_examples=12)
def test_replayed_and_static_steps_draw_what_growing_ones_do(
    model, tokenizer, prompts, guidance, temperature, num_positions, seed
):
    options = dict(prompts=prompts, guidance=guidance, temperature=temperature, num_positions=num_positions, seed=seed)
    expected = draw(model, tokenizer, EagerSteps(), **options)
    assert draw(model, tokenizer, EagerSteps(is_static=True), **options).equal(expected)
    steps = RecordedSteps()
    assert draw(model, tokenizer, steps, **options).equal(expected)
    captured = num_positions - 1 >= WARM_UP_STEPS + FEWEST_REPLAYS
    assert steps.num_replays == (num_positions - 1 - WARM_UP_STEPS if captured else 0)


def test_the_stand_in_notices_state_that_is_not_in_tensors(model, tokenizer):
    """Else the test above could not fail: growing steps count their tokens in Python."""
    steps = RecordedSteps()
    steps.is_static = False
    assert not draw(model, tokenizer, steps).equal(draw(model, tokenizer, EagerSteps()))


def test_batches_of_other_sizes_are_captured_anew(model, tokenizer):
    steps = RecordedSteps()
    for prompts in (PROMPTS, PROMPTS[:1], PROMPTS[1:3]):
        drawn = draw(model, tokenizer, steps, prompts)
        assert drawn.equal(draw(model, tokenizer, EagerSteps(), prompts)), prompts
    assert steps.num_captures == 3


class Uncapturable(RecordedSteps):
    """Its capture breaks after a part of the step, as by an operation that waits for the device."""

    def _capture(self, step):
        self.num_captures += 1
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore")


def test_steps_that_cannot_be_captured_are_launched_one_by_one(model, tokenizer, caplog):
    steps = Uncapturable()
    for _ in range(2):
        assert draw(model, tokenizer, steps).equal(draw(model, tokenizer, EagerSteps()))
    assert steps.num_captures == 1
    (record,) = caplog.records
    assert "cannot be captured (CUDA error: operation failed due to a previous error during capture)" in record.message


def test_the_reason_is_the_error_that_broke_the_capture(caplog):
    def step():
        torch.zeros(1).item()

    steps = RecordedSteps()
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        steps._capture(step)
    steps.run(step, WARM_UP_STEPS + FEWEST_REPLAYS)
    assert not steps.can_capture and "not permitted when stream is capturing" in caplog.text


def test_other_errors_of_a_step_are_raised():
    def step():
        raise TypeError("a mistake")

    with pytest.raises(TypeError, match="a mistake"):
        RecordedSteps().run(step, 1)


class Ids:
    """A tokenizer that decodes to the ids themselves, with an end of turn of our choice."""

    def __init__(self, tokenizer, turn_end_id):
        self.encode, self.padding_id, self.turn_end_id = tokenizer.encode, tokenizer.padding_id, turn_end_id

    def decode(self, token_ids):
        return " ".join(map(str, token_ids))


@pytest.mark.parametrize("max_tokens", [1, 5, 30])
@pytest.mark.parametrize("ends", [False, True])
def test_replayed_steps_answer_what_growing_ones_do(model, tokenizer, max_tokens, ends):
    shape = (3, 2, 2, DIMENSIONS.codes_per_position)
    codes_BYXC = np.random.default_rng(0).integers(0, DIMENSIONS.codebook_size, shape, dtype=np.uint16)

    def answered(steps, turn_end_id):
        config, by = AnswerConfig(max_tokens=max_tokens), Ids(tokenizer, turn_end_id)
        return answer_questions(model, by, codes_BYXC, PROMPTS[:3], config, seeds=range(3), steps=steps)

    end = -1
    if ends:
        end = int(answered(EagerSteps(), -1)[0].split()[max_tokens // 2])
    expected = answered(EagerSteps(), end)
    steps = RecordedSteps()
    found = answered(steps, end)
    for answer, whole in zip(found, expected, strict=True):
        length = len(whole.split())
        assert answer.split()[:length] == whole.split()
        assert set(answer.split()[length:]) <= {str(end)}
    if not ends:
        assert steps.num_replays == (max_tokens - 1 - WARM_UP_STEPS if max_tokens == 30 else 0)


def test_replays_stop_within_a_few_steps_of_the_end():
    count = torch.zeros(())

    def step():
        count.add_(1)

    steps = RecordedSteps()
    steps.run(step, 1000, lambda: bool(count >= WARM_UP_STEPS + 1))
    assert count == WARM_UP_STEPS + STEPS_PER_CHECK


def test_eager_steps_show_that_they_proceed():
    calls = []
    EagerSteps(after_step=lambda: calls.append("after")).run(lambda: calls.append("step"), 2)
    assert calls == ["step", "after"] * 2


def test_cpus_run_growing_steps_and_gpus_graphs():
    assert isinstance(steps_on(torch.device("cpu")), EagerSteps) and not steps_on(torch.device("cpu")).is_static
    assert isinstance(steps_on(torch.device("cuda", 1)), GraphSteps)


@torch.inference_mode()
def test_a_step_reads_nothing_back_from_its_device(tokenizer, monkeypatch):
    """Meta tensors have no data: what makes Python, or a shape, depend on data raises; so does a tensor on the CPU.

    `torch.tensor` would copy from the host, which waits for a CUDA device, too.
    """

    def start(sequences, prompts, **_):  # prompts are run once per batch, and their kernel may wait for the device
        sequences.cache = KeyValueCache(num_sequences=len(prompts), capacity_tokens=32)
        sequences.positions_B = torch.full((len(prompts),), 7, device="meta")
        sequences.num_tokens, sequences.is_masked = 32, True
        return torch.zeros(len(prompts), model.config.hidden_size, device="meta")

    monkeypatch.setattr("ufork.infer.sequences.Sequences.start", start)
    with torch.device("meta"):
        model = UniFork(tiny_config(), DIMENSIONS).eval()
    steps = EagerSteps(is_static=True)
    sequences = prompt_sequences(PROMPTS, tokenizer, guidance=DrawConfig().guidance)
    drawing = Drawing(model, sequences, DrawConfig(), num_positions=9, seeds=range(4), steps=steps)
    with monkeypatch.context() as forbidding:
        forbidding.delattr(torch, "tensor")
        drawing.step()
    assert drawing.codes_BNC.is_meta and drawing.entering_RD.is_meta
    with pytest.raises(RuntimeError):
        bool(drawing.codes_BNC.sum())


@torch.inference_mode()
def test_masked_attention_of_bf16_keeps_a_mask_of_bf16():
    cache = KeyValueCache(num_sequences=2, capacity_tokens=16)
    attend = Extend(cache, torch.tensor([0, 3]), torch.bfloat16, num_tokens=16, is_masked=True)
    key = torch.ones(2, 2, 8, dtype=torch.bfloat16)
    out = attend(0, torch.zeros(2, 4, 8, dtype=torch.bfloat16), key, 3 * key)
    assert out.dtype == torch.bfloat16 and out.shape == (2, 4, 8)
    assert out[0].eq(3).all() and out[1].eq(0.75).all(), "the second attends to three zeros before its token"


@pytest.mark.gpu
@torch.inference_mode()
def test_cuda_draws_without_waiting_for_the_device(model, tokenizer):
    on_cuda = tiny_model().to("cuda")
    on_cuda.load_state_dict(model.state_dict())
    config, steps = DrawConfig(), EagerSteps(is_static=True)
    sequences = prompt_sequences(PROMPTS, tokenizer, guidance=config.guidance)
    drawing = Drawing(on_cuda, sequences, config, num_positions=4, seeds=range(4), steps=steps)
    drawing.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawing.step()
        drawing.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_cuda_graphs_draw_what_their_steps_do(model, tokenizer, guidance, caplog):
    on_cuda = tiny_model().to("cuda")
    on_cuda.load_state_dict(model.state_dict())
    graphs, allocated = GraphSteps(torch.device("cuda")), []
    for prompts in (PROMPTS, PROMPTS[:1], PROMPTS):
        options = dict(prompts=prompts, guidance=guidance, top_k=1)
        eager = draw(on_cuda, tokenizer, EagerSteps(is_static=True), **options)
        assert draw(on_cuda, tokenizer, graphs, **options).equal(eager)
        assert eager.cpu().equal(draw(model, tokenizer, EagerSteps(), **options)), "fp32 on both devices"
        del eager
        allocated.append(torch.cuda.memory_allocated())
    assert graphs.can_capture and not caplog.records
    assert allocated[0] == allocated[1] == allocated[2], "each graph's memory is returned"


@pytest.mark.gpu
def test_a_broken_capture_leaves_a_usable_device():
    graphs, numbers = GraphSteps(torch.device("cuda")), torch.zeros(1, device="cuda")

    def step():
        numbers.add_(1)
        numbers.item()

    graphs.run(step, WARM_UP_STEPS + FEWEST_REPLAYS)
    torch.cuda.default_generators[0].graphsafe_set_state(torch.Generator("cuda"))  # the old one waits for its capture
    assert not graphs.can_capture and numbers.item() == WARM_UP_STEPS + FEWEST_REPLAYS
    torch.cuda.empty_cache()
