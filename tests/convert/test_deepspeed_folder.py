"""ZeRO folders of DeepSpeed give the weights that were trained, whichever stage wrote them."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.ranks import run_on_ranks
from tests.zero_folder import save_zero_folder
from ufork.convert.deepspeed_folder import find_step, gathered_weights
from ufork.convert.tensor_folder import TensorFolder
from ufork.errors import CheckpointError
from ufork.parallel.rank_environment import RankEnvironment


class Model(nn.Module):
    """Parameters that train, one that does not, a buffer, and a weight under two names."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.norm, self.tower = nn.LayerNorm(5), nn.Linear(3, 3)
        self.register_buffer("average", torch.arange(4.0))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)
        self.head.weight = self.embedding.weight
        self.tower.requires_grad_(False)

    def forward(self, token_ids):
        return self.head(self.norm(self.embedding(token_ids)))


def run_saving(rank_env: RankEnvironment, folder: Path, stage: int):
    save_zero_folder(rank_env, Model(), folder, stage=stage, tag="global_step7")


@pytest.fixture(scope="module", params=[3, pytest.param(2, marks=pytest.mark.slow)])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"zero{request.param}")
    run_on_ranks(run_saving, 2, folder, request.param)
    return folder


def test_the_weights_are_those_that_were_saved(saved, tmp_path):
    with gathered_weights(find_step(saved), scratch=tmp_path) as path:
        found = TensorFolder.open(path)
        for name, value in Model().state_dict().items():
            torch.testing.assert_close(found.read(name), value, msg=name)
    assert list(tmp_path.iterdir()) == [], "the gathered weights are removed"


class Runs:
    """A value whose pickle makes a folder when it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_file_that_names_a_function_is_refused_and_the_function_is_not_run(saved, tmp_path):
    step = shutil.copytree(find_step(saved), tmp_path / "global_step7")
    state = next(step.glob("*optim_states.pt"))
    content = torch.load(state, weights_only=False)
    torch.save({**content, "extra": Runs(tmp_path / "run")}, state)
    with pytest.raises(CheckpointError, match=r"names \w+.mkdir, and reading it could run any program"):
        with gathered_weights(step, scratch=tmp_path / "scratch"):
            pass
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_without_the_files_of_a_rank_is_named(saved, tmp_path):
    step = tmp_path / "global_step7"
    step.mkdir()
    for path in find_step(saved).iterdir():
        if "zero_pp_rank_1" not in path.name:
            (step / path.name).symlink_to(path)
    with pytest.raises(CheckpointError, match=r"global_step7.*zero_to_fp32 cannot read it .*optim_states"):
        with gathered_weights(step, scratch=tmp_path / "scratch"):
            pass


@pytest.mark.parametrize(
    ("latest", "expected"),
    [("global_step20", "global_step20"), (None, "global_step100"), ("global_step5", "global_step100")],
    ids=["named", "newest", "named one is gone"],
)
def test_the_step_is_the_latest(tmp_path, latest, expected):
    for name in ("global_step20", "global_step100", "global_step_old"):
        (tmp_path / name).mkdir()
    if latest:
        (tmp_path / "latest").write_text(latest)
    assert find_step(tmp_path) == tmp_path / expected
    assert find_step(tmp_path / "global_step20") == tmp_path / "global_step20"


def test_a_folder_without_steps_has_none(tmp_path):
    assert find_step(tmp_path) is None
