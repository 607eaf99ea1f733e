"""Shards of any layout, joined from their files, are the tensors they were made from."""

import json
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ufork.errors import CheckpointError
from ufork.parallel.config import StageShape
from ufork.parallel.engine.state_files import WEIGHT, RankState, ShardRegion, StateFiles, state_path
from ufork.parallel.layout import MeshCoordinate, Stage


def opened(folder):
    return StateFiles(folder, [path.relative_to(folder) for path in folder.glob("*/*")])


def write_shards(folder, tensors, partition_dims, *, dp, tp, stage=Stage.TRUNK, steps=7):
    """Writes what the ranks of a stage would: of each tp shard, flattened and padded, the dp shard."""
    for dp_rank, tp_rank in product(range(dp), range(tp)):
        tp_shards = {
            name: whole.chunk(tp, dim=partition_dims[name])[tp_rank] if name in partition_dims else whole
            for name, whole in tensors.items()
        }
        dp_shards = {}
        for name, tensor in tp_shards.items():
            size = -(-tensor.numel() // dp)
            padded = torch.nn.functional.pad(tensor.flatten(), (0, dp * size - tensor.numel()))
            dp_shards[name] = padded[dp_rank * size : (dp_rank + 1) * size]
        state = RankState(
            dp=dp,
            dp_rank=dp_rank,
            tp=tp,
            tp_rank=tp_rank,
            shapes={name: tuple(tensor.shape) for name, tensor in tp_shards.items()},
            partition_dims=partition_dims,
            optimizer_steps=steps,
            tensors={WEIGHT: dp_shards},
        )
        path = state_path(
            folder, MeshCoordinate(rank=0, stage=stage, shape=StageShape(), dp_rank=dp_rank, tp_rank=tp_rank)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        image = state.image()
        image.fill()
        image.write(path)


@settings(max_examples=60, deadline=None)
@given(
    dp=st.integers(1, 4),
    tp=st.sampled_from([1, 2, 4]),
    dim=st.sampled_from([None, 0, 1]),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_whole_tensors_are_read_from_any_layout(tmp_path_factory, dp, tp, dim, shape):
    folder = tmp_path_factory.mktemp("shards")
    whole = torch.randn(shape[0] * 4, shape[1] * 4)
    write_shards(folder, {"w": whole, "b": whole[0]}, {} if dim is None else {"w": dim}, dp=dp, tp=tp)
    with opened(folder) as files:
        assert torch.equal(files.whole(WEIGHT, "w"), whole)
        assert torch.equal(files.whole(WEIGHT, "b"), whole[0])
        assert files.whole(WEIGHT, "c") is None and files.whole("exp_avg", "w") is None
        assert (files.kinds(), files.optimizer_steps) == ({WEIGHT}, 7)


@settings(max_examples=100, deadline=None)
@given(
    written=st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 4])),
    read=st.tuples(st.integers(1, 7), st.sampled_from([1, 2, 4])),
    dim=st.sampled_from([None, 0, 1]),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_every_rank_of_any_layout_reads_its_regions(tmp_path_factory, written, read, dim, shape):
    folder = tmp_path_factory.mktemp("shards")
    whole = torch.randn(shape[0] * 4, shape[1] * 4)
    partition_dims = {} if dim is None else {"w": dim}
    write_shards(folder, {"w": whole}, partition_dims, dp=written[0], tp=written[1])
    dp, tp = read
    with opened(folder) as files:
        for dp_rank, tp_rank in product(range(dp), range(tp)):
            own = (whole if dim is None else whole.chunk(tp, dim=dim)[tp_rank]).flatten()
            size = -(-len(own) // dp)
            padded = torch.nn.functional.pad(own, (0, dp * size - len(own)))
            region = ShardRegion(
                tp=tp, tp_rank=tp_rank, partition_dim=dim, start=dp_rank * size, stop=(dp_rank + 1) * size
            )
            assert torch.equal(files.region(WEIGHT, "w", region), padded[region.start : region.stop])
            assert files.region(WEIGHT, "c", region) is None


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_shards_of_any_place_and_type_are_written_as_they_are_and_neighbours_are_one_copy(tmp_path_factory, data):
    """Flat tensors as ZeRO's, split into parameters whose names are in any order, some of two bytes per value."""
    folder, kinds, num_flats = tmp_path_factory.mktemp("shards") / str(Stage.TRUNK), {}, 0
    for kind in (WEIGHT, "exp_avg"):
        dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
        names = data.draw(st.permutations("abcdef"))
        split = data.draw(st.integers(1, 5))
        kinds[kind] = {}
        for group in (names[:split], names[split:]):
            sizes = data.draw(st.lists(st.integers(1, 5), min_size=len(group), max_size=len(group)))
            flat = torch.randn(sum(sizes)).to(dtype)
            kinds[kind] |= dict(zip(group, flat.split(sizes), strict=True))
            num_flats += 1
    kinds = {kind: dict(sorted(named.items())) for kind, named in kinds.items()}
    state = RankState(dp=1, dp_rank=0, tp=1, tp_rank=0, shapes={}, partition_dims={}, optimizer_steps=7, tensors=kinds)
    image = state.image()
    assert len(image.sources) == num_flats
    image.fill()
    folder.mkdir()
    image.write(folder / "dp0-tp0.safetensors")
    read = load_file(folder / "dp0-tp0.safetensors")
    for kind, named in kinds.items():
        for name, tensor in named.items():
            assert torch.equal(read[f"{kind}:{name}"], tensor)


def test_stages_are_read_as_one(tmp_path):
    write_shards(tmp_path, {"a": torch.ones(3)}, {}, dp=2, tp=1)
    write_shards(tmp_path, {"b": torch.zeros(5)}, {}, dp=1, tp=1, stage=Stage.GENERATION, steps=0)
    with opened(tmp_path) as files:
        assert (len(files.whole(WEIGHT, "a")), len(files.whole(WEIGHT, "b"))) == (3, 5)
        assert files.optimizer_steps == 7


def test_a_missing_rank_is_named(tmp_path):
    write_shards(tmp_path, {"a": torch.ones(3)}, {}, dp=2, tp=1)
    (tmp_path / "trunk" / "dp1-tp0.safetensors").unlink()
    with opened(tmp_path) as files, pytest.raises(CheckpointError, match=r"a has no shard of .* rank \(0, 1\)"):
        files.whole(WEIGHT, "a")


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0garbage!", b"x" * 99])
def test_a_damaged_file_is_named(tmp_path, content):
    write_shards(tmp_path, {"a": torch.ones(3)}, {}, dp=1, tp=1)
    (tmp_path / "trunk" / "dp0-tp0.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="dp0-tp0.safetensors: damaged"):
        opened(tmp_path)


def test_an_empty_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="contains no checkpoint files"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"tp": 0, "dp": 1},
        {"tp": 10**9},
        {"dp": 10**9},
        {"shapes": {}},
        {"shapes": {"a": [10**12]}},
        {"shapes": {"a": [-3]}},
        {"partition_dims": {"a": 5}},
        {"optimizer_steps": "many"},
        {"dp_rank": None},
        {"dp_rank": 1, "dp": 2},
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_its_file_is_damage(tmp_path, change):
    """Row M13: the numbers of a header are compared with the file before anything is made from them."""
    write_shards(tmp_path, {"a": torch.ones(4, 2)}, {"a": 0}, dp=1, tp=1)
    path = tmp_path / "trunk" / "dp0-tp0.safetensors"
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["ufork"]) | change
    save_file(load_file(path), path, {"ufork": json.dumps(header)})
    with pytest.raises(CheckpointError), opened(tmp_path) as files:
        files.whole(WEIGHT, "a")


def test_files_that_contradict_each_other_are_damage(tmp_path):
    one, two, name = tmp_path / "one", tmp_path / "two", "trunk/dp0-tp1.safetensors"
    write_shards(one, {"a": torch.ones(4, 2)}, {"a": 0}, dp=1, tp=2)
    write_shards(two, {"a": torch.ones(6, 3)}, {"a": 0}, dp=1, tp=2)
    (two / name).replace(one / name)
    with opened(one) as files, pytest.raises(CheckpointError, match="the files differ in the shape"):
        files.whole(WEIGHT, "a")


def test_values_that_are_not_finite_are_not_restored(tmp_path):
    """Row M13."""
    write_shards(tmp_path, {"a": torch.tensor([1, torch.nan, 3, 4])}, {}, dp=2, tp=1)
    with opened(tmp_path) as files:
        with pytest.raises(CheckpointError, match="weight:a holds NaN"):
            files.whole(WEIGHT, "a")
        later = ShardRegion(tp=1, tp_rank=0, partition_dim=None, start=2, stop=4)
        assert files.region(WEIGHT, "a", later).tolist() == [3, 4]
