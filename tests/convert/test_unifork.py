"""Checkpoints of the release become folders of ufork's, in every form in which they occur."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.golden_files import GOLDEN, TOWER_PREFIX, golden_checkpoint
from tests.ranks import run_on_ranks
from tests.tiny import tiny_tokenizer
from tests.zero_folder import save_zero_folder
from ufork.convert import unifork
from ufork.convert.unifork import convert, release_tensors
from ufork.errors import CheckpointError, ConfigError
from ufork.infer.config import AnswerConfig, DrawConfig
from ufork.infer.model import TEXT_FOLDER, VISION_FOLDER, TrainedModel
from ufork.infer.padded_rows import load_plain
from ufork.model.unifork import TIED_HEAD
from ufork.model.weights import load_weights
from ufork.parallel.rank_environment import RankEnvironment
from ufork.vision.codec import ImageCodec
from ufork.vocabulary import Task

TOWER_ALIASES = (
    *(f"rqvaesiglip.quantizer.codebooks.{depth}." for depth in (1, 2, 3)),
    *(f"rqvaesiglip.siglip_model.logit_{kind}" for kind in ("scale", "bias")),
)
ALIASES = ("lm_head.weight", *(TOWER_PREFIX + name for name in TOWER_ALIASES))


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return golden_checkpoint()


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    convert(GOLDEN / "ckpt", folder)
    return folder


def write_checkpoint(folder: Path, tensors: dict[str, torch.Tensor] | None, **config) -> Path:
    """A checkpoint in one file, or without weights; `config` are values of config.json."""
    shutil.copytree(GOLDEN / "ckpt", folder, ignore=shutil.ignore_patterns("model*"))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors")
    return folder


def assert_same_folders(found: Path, expected: Path) -> None:
    files = [path.relative_to(expected) for path in expected.rglob("*") if path.is_file()]
    assert files
    for file in files:
        assert (found / file).read_bytes() == (expected / file).read_bytes(), file


def test_a_file_without_aliases_converts_alike(converted, tensors, tmp_path):
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(ALIASES)}
    assert len(tensors) - len(kept) == 1 + 3 * 3 + 2
    convert(write_checkpoint(tmp_path / "in", kept), tmp_path / "out")
    assert_same_folders(tmp_path / "out", converted)


def test_every_weight_of_the_language_model_and_the_rq_head_is_taken_and_named_back(converted, tensors):
    model = load_plain(converted)
    found = release_tensors({name: p.detach() for name, p in model.named_parameters()}, model.config)
    tower = (f"{TOWER_PREFIX}rqvaesiglip", "lm_head")
    assert found.keys() == {name for name in tensors if not name.startswith(tower)}
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found.items())


def test_a_text_head_of_its_own_is_kept(tensors, tmp_path):
    own = {**tensors, "lm_head.weight": torch.randn(512, 48)}
    convert(write_checkpoint(tmp_path / "in", own, tie_word_embeddings=False), tmp_path / "out")
    weights, config = load_weights(tmp_path / "out")
    assert torch.equal(weights[TIED_HEAD], own["lm_head.weight"]) and not config.model.tie_word_embeddings


def test_a_text_head_that_should_be_tied_and_differs_is_refused(tensors, tmp_path):
    own = {**tensors, "lm_head.weight": torch.randn(512, 48)}
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not a copy .*tie_word_embeddings"):
        convert(write_checkpoint(tmp_path / "in", own), tmp_path / "out")


def test_missing_and_unexpected_tensors_are_named_in_groups(tensors, tmp_path):
    changed = {name: tensor for name, tensor in tensors.items() if ".gen_fork_layers.1.mlp." not in name}
    changed |= {f"model.extra.{i}.weight": torch.zeros(1) for i in range(3)}
    changed["model.norm_gen.weight"] = torch.zeros(47)
    with pytest.raises(CheckpointError) as error:
        convert(write_checkpoint(tmp_path / "in", changed), tmp_path / "out")
    assert "missing: model.gen_fork_layers.*.mlp.up_proj.weight" in str(error.value)
    assert "unexpected: model.extra.*.weight (3 tensors)" in str(error.value)
    assert "mis-shaped: model.norm_gen.weight: [47], expected [48]" in str(error.value)


def test_another_kind_of_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="model_type"):
        convert(write_checkpoint(tmp_path / "in", None, model_type="qwen2"), tmp_path / "out")


def test_a_tower_whose_rq_head_is_for_another_body_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"hidden_size is 96 .* RQ head is for 48"):
        convert(write_checkpoint(tmp_path / "in", None, hidden_size=96), tmp_path / "out")


def test_the_tower_is_found_where_the_authors_path_leads_nowhere(converted, tensors, tmp_path):
    convert(write_checkpoint(tmp_path / "in", tensors, mm_vision_tower="/authors/tower"), tmp_path / "out")
    assert_same_folders(tmp_path / "out", converted)


def test_the_size_of_images_is_the_releases_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setattr(unifork, "TRAINED_PX", 16)
    monkeypatch.setattr(unifork, "RELEASE_PX", 24)
    for name, overrides, expected in (("usual", [], 24), ("told", ["image_px=32"], 32)):
        convert(GOLDEN / "ckpt", tmp_path / name, overrides)
        assert ImageCodec.load(tmp_path / name / VISION_FOLDER).config.image_px == expected
    with pytest.raises(ConfigError, match="image_pixels"):
        convert(GOLDEN / "ckpt", tmp_path / "unknown", ["image_pixels=32"])


def test_a_checkpoint_with_a_text_tokenizer_draws_and_answers(tensors, tmp_path):
    tiny_tokenizer().save(write_checkpoint(tmp_path / "in", tensors))
    convert(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / TEXT_FOLDER).is_dir()
    trained = TrainedModel.load(tmp_path / "out")
    images = trained.draw(["a red dog"], DrawConfig(guidance=3.0))
    assert images.shape == (1, 16, 16, 3) and set(trained.tasks) == set(Task)
    assert len(trained.answer(images, ["what is this?"], AnswerConfig(max_tokens=3))) == 1


def module_of(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """A module whose parameters have the names of the checkpoint; the image tokenizer is frozen."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, kind = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(kind, nn.Parameter(tensor, requires_grad="rqvaesiglip" not in name))
    return root


def run_saving(rank_env: RankEnvironment, folder: Path):
    save_zero_folder(rank_env, module_of(golden_checkpoint()), folder, stage=3, tag="global_step7")


@pytest.mark.slow
def test_a_deepspeed_folder_converts_alike(converted, tmp_path):
    source = write_checkpoint(tmp_path / "in", None)
    run_on_ranks(run_saving, 2, source)
    convert(source, tmp_path / "out")
    assert_same_folders(tmp_path / "out", converted)
    convert(source / "global_step7", tmp_path / "step")
    assert_same_folders(tmp_path / "step", converted)
