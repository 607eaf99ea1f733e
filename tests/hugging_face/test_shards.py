"""Weights in several files, as transformers reads them."""

import json
from functools import partial

import torch

from ufork.convert.planned_file import PlannedTensor
from ufork.convert.tensor_folder import TensorFolder, TensorSize
from ufork.hugging_face.shards import write_shards

TENSORS = {name: torch.full((2, 3), float(number)) for number, name in enumerate("abcde")}  # 24 bytes each
PLAN = {
    name: PlannedTensor(TensorSize((2, 3), torch.float32), partial(torch.clone, tensor))
    for name, tensor in TENSORS.items()
}


def test_few_tensors_are_one_file_without_an_index(tmp_path):
    write_shards(tmp_path, PLAN)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_no_file_is_larger_than_the_limit_and_the_index_has_every_tensor(tmp_path):
    write_shards(tmp_path, PLAN, max_bytes=50)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    places = [index["weight_map"][name].split("-")[1] for name in "abcde"]
    assert places == ["00001", "00001", "00002", "00002", "00003"]
    assert index["metadata"]["total_size"] == 5 * 24
    folder = TensorFolder.open(tmp_path)
    assert all(torch.equal(folder.read(name), tensor) for name, tensor in TENSORS.items())
