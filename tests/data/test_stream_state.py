"""A stream that was stopped, killed and resized reads each lane as if nothing had happened."""

import json
import multiprocessing
import pickle
from collections import defaultdict
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import CODEC_SIZES, tiny_tokenizer, write_codes_source
from ufork.data import stream
from ufork.data.config import DataConfig, SourceConfig
from ufork.data.stream import TrainingStream
from ufork.data.stream_state import SourceState, StreamState, join_states
from ufork.errors import CheckpointError
from ufork.vocabulary import Task

NUM_LANES = 12
TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_codes_source(folder / "one", num_samples=40)
    write_codes_source(folder / "two", num_samples=20, seed=1)
    for shard in (folder / "two").glob("*.tar"):
        shard.write_bytes(shard.read_bytes().replace(b"\x93NUMPY", b"\x93NUMPX", 7))  # a third cannot be used
    return folder


def load_in_turn(make, *, num_workers, **_):
    """Replaces `prefetch` without processes, whose start takes most of the time; each worker has its own copy."""
    workers = [pickle.loads(pickle.dumps(make))(worker, num_workers) for worker in range(num_workers)]
    for worker in cycle(workers):
        yield next(worker)


@pytest.fixture(scope="module", autouse=True)
def workers_without_processes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "prefetch", load_in_turn)
        yield


def open_stream(
    folder,
    *,
    replica=0,
    num_replicas=1,
    sequences=12,
    seed=3,
    weights=(2.0, 1.0),
    sources=("one", "two"),
    readers=("index", "stream"),
    num_workers=0,
):
    """A mixture of a source that is read by its index, and one that is read from the start of its shards."""
    mixture = tuple(
        SourceConfig(folder=name, weight=weight, reader=reader)
        for name, weight, reader in zip(sources, weights, readers, strict=False)
    )
    return TrainingStream(
        DataConfig(
            understanding=mixture,
            generation=mixture,
            seq_len=60,
            num_lanes=NUM_LANES,
            num_workers=num_workers,
            max_skipped_share=1,
        ),
        TOKENIZER,
        codec=CODEC_SIZES,
        global_batch_size=dict.fromkeys(Task, sequences),
        replica=replica,
        num_replicas=num_replicas,
        folder=folder,
        seed=seed,
        context=multiprocessing.get_context(),
    )


def read_steps(replicas, num_steps):
    """Sample ids by task and lane; the sequences are the job's, replica by replica."""
    seen = defaultdict(list)
    for _ in range(num_steps):
        for each in replicas:
            maker = each._maker()
            lanes = {task: maker.lanes(task, each.first_sequence[task]).values() for task in Task}
            for task, sequences in each.next_step().items():
                for lane, sequence in zip(lanes[task], sequences, strict=True):
                    seen[task, lane] += sequence.sample_ids
    return seen


def saved(replicas) -> StreamState:
    """Joins the states of all replicas and converts them to JSON and back, as a checkpoint does."""
    joined = join_states([each.state() for each in replicas])
    return StreamState.from_mapping(json.loads(joined.model_dump_json()), origin="saved")


STRETCHES = st.lists(
    st.tuples(
        st.integers(1, 3).flatmap(lambda steps: st.tuples(st.just(steps), st.integers(0, 2))),
        st.sampled_from([1, 2, 3, 4]),  # replicas
        st.sampled_from([12, 24]),  # sequences per step
        st.integers(0, 3),  # loader workers
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=20, deadline=None)
@given(history=STRETCHES)
def test_any_history_reads_the_sequences_of_an_uninterrupted_stream(folder, history):
    require_undisturbed(folder, history)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(history=STRETCHES)
def test_two_hundred_histories_read_the_sequences_of_an_uninterrupted_stream(folder, history):
    require_undisturbed(folder, history)


def num_taken(state):
    taken = [lanes for tasks in state.taken.values() for lanes in tasks.values()] if state else []
    return sum(map(sum, taken))


def require_undisturbed(folder, history):
    """Reads stretch by stretch, each on other replicas and workers, and compares every lane with one stream's.

    In each stretch, samples taken = samples used + samples skipped by reason.
    """
    read, state = defaultdict(list), None
    for (steps, lost_steps), num_replicas, sequences, num_workers in history:
        layout = {"num_replicas": num_replicas, "sequences": sequences, "num_workers": num_workers}
        replicas = [open_stream(folder, replica=replica, **layout) for replica in range(num_replicas)]
        for each in replicas:
            if state:
                each.restore(state, origin="saved")
        stretch = read_steps(replicas, steps)
        for key, ids in stretch.items():
            read[key] += ids
        skipped = sum(each.skipped_samples.reasons.total() for each in replicas)
        before, state = num_taken(state), saved(replicas)
        assert num_taken(state) - before == sum(map(len, stretch.values())) + skipped
        read_steps(replicas, lost_steps)  # killed after the checkpoint: trained on, and lost with the weights
    longest = read_steps([open_stream(folder)], 2 * sum(steps for (steps, _), *_ in history))
    assert sum(map(len, read.values())) > 0
    for key, ids in read.items():
        assert ids == longest[key][: len(ids)], key


def test_each_sample_comes_once_an_epoch_for_any_history(folder):
    state, seen, epoch = None, [], 40
    num_replicas = 1
    while len(seen) < 2 * epoch:
        replicas = [
            open_stream(folder, replica=r, num_replicas=num_replicas, sources=["one"], weights=[1.0])
            for r in range(num_replicas)
        ]
        for each in replicas:
            if state:
                each.restore(state, origin="saved")
        seen += [name for (task, _), ids in read_steps(replicas, 1).items() if task is Task.GENERATION for name in ids]
        state, num_replicas = saved(replicas), num_replicas % 4 + 1
    counts = {lane: taken[0] for lane, taken in state.taken[Task.GENERATION].items()}
    (mixture, *_) = replicas[0]._mixtures.values()
    shares = {lane: len(mixture.share(lane, 0)) for lane in counts}
    whole_epochs = min(counts[lane] // shares[lane] for lane in counts)
    assert whole_epochs >= 1
    assert len(set(seen)) == epoch
    assert all(seen.count(name) >= whole_epochs for name in set(seen))


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"seed": 4}, "run.seed .* was 3, is 4"),
        ({"readers": ("stream", "stream")}, "reader of data.understanding's one was index, is stream"),
        ({"weights": (1.0, 1.0)}, "weight of data.understanding's one was 2.0, is 1.0"),
        ({"sources": ("two", "one")}, r"data.generation was \['one', 'two'\], is \['two', 'one'\]"),
    ],
)
def test_other_data_is_refused_by_name(folder, changed, said):
    state = saved([open_stream(folder)])
    with pytest.raises(CheckpointError, match=f"state.json: .*{said}"):
        open_stream(folder, **changed).restore(state, origin="state.json")


LOST = {
    "a lane": lambda values: values["taken"]["generation"].pop("3"),
    "a task": lambda values: values["taken"].pop("generation"),
    "a source": lambda values: values["taken"]["generation"].update({"3": [1]}),
    "a count of sequences": lambda values: values["first_sequence"].pop("understanding"),
}


@pytest.mark.parametrize("name", LOST)
def test_a_state_that_lacks_a_position_is_refused(folder, name):
    """Row M5."""
    values = json.loads(saved([open_stream(folder)]).model_dump_json())
    LOST[name](values)
    with pytest.raises(CheckpointError, match=r"state.json: damaged: it lacks positions of"):
        open_stream(folder).restore(StreamState.from_mapping(values, origin=""), origin="state.json")


def state_of(*sources, tasks=(Task.GENERATION,)):
    described = [
        SourceState(folder=name, recipe=recipe, samples=9, weight=1.0, reader="index") for name, recipe in sources
    ]
    return StreamState(
        seed=0, num_lanes=1, step=0, first_sequence={}, sources=dict.fromkeys(tasks, tuple(described)), taken={}
    )


@pytest.mark.parametrize(
    "now, said",
    [
        (state_of(("a", "1"), ("b", "2")), None),
        (state_of(("moved/a", "1"), ("b", "2")), None),
        (state_of(("a", "1")), r"data.generation was \['a', 'b'\], is \['a'\]"),
        (state_of(("a", "1"), ("b", "2"), ("c", "3")), r"is \['a', 'b', 'c'\]"),
        (state_of(("a", "1"), ("c", "3")), r"is \['a', 'c'\]"),
        (state_of(("b", "2"), ("a", "1")), r"is \['b', 'a'\]"),
        (state_of(("a", "1"), ("b", "3")), "recipe of data.generation's b was 2, is 3"),
        (
            state_of(("a", "1"), ("b", "2"), tasks=Task),
            "train.global_batch_size was of generation, is of generation and",
        ),
    ],
)
def test_sources_may_move_and_no_more(now, said):
    before = state_of(("a", "1"), ("b", "2"))
    if said is None:
        before.require_fits(now, origin="state.json")
        return
    with pytest.raises(CheckpointError, match=said):
        before.require_fits(now, origin="state.json")


def test_a_source_without_a_digest_is_known_by_its_folder():
    with pytest.raises(CheckpointError, match=r"was \['a'\], is \['b'\]"):
        state_of(("a", "")).require_fits(state_of(("b", "")), origin="state.json")
