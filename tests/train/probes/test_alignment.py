"""The probe during training: what it writes is what the trained weights give, and training goes on as without it."""

import pytest
import torch

from tests.infer.test_model import save_codec
from tests.ranks import run_on_ranks
from tests.stages import initial_model, tiny_phase
from tests.tiny import shallow_config, tiny_tokenizer, write_codes_source
from ufork.analysis.measure_alignment import measure_alignment
from ufork.analysis.pairs import read_pairs
from ufork.errors import ConfigError
from ufork.infer.model import TrainedModel
from ufork.model.layers.attention_kernels import sdpa_attention
from ufork.parallel.config import LayoutConfig
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.report.metrics import read_metrics
from ufork.run_folder import RunFolder
from ufork.train.config import AlignmentProbeConfig
from ufork.train.loop import Hooks, train_phase
from ufork.train.probes.alignment import alignment_probe
from ufork.train.session import open_session
from ufork.vision.codec import ImageCodec
from ufork.vocabulary import Task

STEPS = 4
PROBE = AlignmentProbeConfig(every_steps=2, num_pairs=20, num_neighbours=5)


def run_phase(rank_env: RankEnvironment, folder, layout: LayoutConfig, probe: AlignmentProbeConfig):
    """Returns the final weights on the leader."""
    torch.set_num_threads(1)
    phase = tiny_phase(folder, layout=layout, steps=STEPS, log_every_steps=1, alignment=probe)
    codec = ImageCodec.load(folder / "vision")
    with join_world(rank_env, layout, timeout_seconds=60) as world, open_session(phase, world) as session:
        wanted = alignment_probe(phase, codec, world)
        return train_phase(session, Hooks(probes=[wanted] if wanted else []))


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "num_ranks"), [(LayoutConfig(), 2), (LayoutConfig(kind="forked"), 3)])
def test_it_measures_the_weights_and_changes_nothing(tmp_path, layout, num_ranks):
    outcomes = []
    for name, probe in (("with", PROBE), ("without", AlignmentProbeConfig())):
        folder = tmp_path / name
        write_codes_source(folder / "tiny", num_samples=40)
        save_codec(folder / "vision")
        weights = run_on_ranks(run_phase, num_ranks, folder, layout, probe)[0]
        lines = read_metrics(RunFolder(folder).phase("all").metrics).entries
        outcomes.append((weights, [line["gradient_norm"] for line in lines]))
    (probed, norms), (expected, expected_norms) = outcomes
    assert norms == expected_norms and len(norms) == STEPS
    assert all(torch.equal(probed[name], expected[name]) for name in expected)

    entries = read_metrics(RunFolder(tmp_path / "with").phase("all").probe("alignment")).entries
    assert [entry["step"] for entry in entries] == [2, 4]
    codec, config = ImageCodec.load(tmp_path / "with/vision"), initial_model(shallow_config()).config
    model = TrainedModel.of_weights(
        probed,
        config,
        tiny_tokenizer(),
        codec,
        kernel=sdpa_attention,
        device=torch.device("cpu"),
        dtype=torch.float32,
        origin="test",
    )
    pairs = read_pairs(codec, [str(tmp_path / "with/tiny")], num_pairs=20, seed=0)
    for curve in measure_alignment(model, pairs, PROBE, name="all").curves:
        for layer in curve.layers:
            name = f"cka/{curve.task}/layers.{layer.layer}"
            assert entries[-1][name] == pytest.approx(layer.scores["cka"].score, abs=1e-3)
    assert {name.split("/")[1] for name in entries[-1] if "/" in name} == set(Task)


def test_too_few_pairs_are_an_error_before_the_first_step(tmp_path):
    write_codes_source(tmp_path / "tiny", num_samples=40)
    save_codec(tmp_path / "vision")
    with pytest.raises(ConfigError, match="num_pairs=900: .*tiny: only"):
        run_on_ranks(run_phase, 1, tmp_path, LayoutConfig(), PROBE.model_copy(update={"num_pairs": 900}))
    assert not read_metrics(RunFolder(tmp_path).phase("all").metrics).entries
