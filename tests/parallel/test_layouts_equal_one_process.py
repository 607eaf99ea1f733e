"""Every layout trains what one process trains: losses, gradient norms and final weights, in fp32."""

import dataclasses
import itertools
from dataclasses import dataclass, field

import pytest
import torch

from tests.nccl_rules import nccl_rules
from tests.ranks import run_on_ranks
from tests.stages import open_stage, weights_of
from tests.tiny import QWEN3, packed_sequence, shallow_config
from ufork.checkpoint.state import LossBalance
from ufork.model.config import ModelConfig, RqHeadConfig
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import Stage, num_ranks_of
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.train import build_stage as stage_builder
from ufork.train.config import GlobalBatchSize, PerTask, TrainConfig
from ufork.train.objectives.gradnorm import rebalanced
from ufork.train.optimization.learning_rate import learning_rate
from ufork.train.step import run_step
from ufork.vocabulary import Task

STEPS = 10
SEQ_LEN = 24
OPTIMIZERS = {"sgd": 0.3, "adamw": 1e-3, "muon": 1e-3}
"""Optimizers with their learning rates; SGD is here since AdamW hides a wrong scale of the gradients."""
ROUNDING_ONLY = "key.bias"
"""Softmax does not see a shift of all keys, so this gradient is nothing but rounding, and AdamW steps as far by it as
by any other."""


@dataclass(frozen=True)
class Case:
    """One layout and what is trained in it."""

    layout: dict
    sequences: tuple[int, int] = (2, 4)
    ranks: int | None = None
    model: dict = field(default_factory=dict)
    train: dict = field(default_factory=dict)
    sequence_parallel: bool = False
    """Sequence parallelism in the trunk, which is for CUDA: megatron-core is made to take the CPU for a device."""
    tolerance: float = 1e-5


def forked(**changes) -> dict:
    return {"kind": "forked", **changes}


SEPARATE = {"separate_first_layers": 1}

CASES = {
    "one rank a stage": Case(forked()),
    "trunk tp 2": Case(forked(trunk={"tp": 2})),
    "trunk dp 2": Case(forked(trunk={"dp": 2})),
    "trunk tp 2 dp 2, branches dp 2": Case(
        forked(trunk={"tp": 2, "dp": 2}, understanding={"dp": 2}, generation={"dp": 2}), sequences=(4, 2)
    ),
    "uneven dp": Case(forked(trunk={"dp": 2}, generation={"dp": 3}), sequences=(2, 6)),
    "uneven dp, by replica": Case(
        forked(trunk={"dp": 2}, generation={"dp": 3}, placement="replicas", in_flight=3), sequences=(4, 6)
    ),
    "tp in a branch": Case(forked(generation={"tp": 2}), model={"tie_word_embeddings": False}),
    "Qwen3's layers, tp 2": Case(forked(trunk={"tp": 2}, understanding={"tp": 2}), model=QWEN3),
    "tp everywhere": Case(forked(trunk={"tp": 2}, understanding={"tp": 2}, generation={"tp": 4}), sequences=(3, 4)),
    "wider branch than trunk": Case(forked(understanding={"tp": 2}, generation={"dp": 2}), sequences=(1, 4)),
    "no understanding": Case(forked(trunk={"tp": 2}, generation={"dp": 2}), sequences=(0, 4)),
    "no generation": Case(forked(trunk={"dp": 2}), sequences=(4, 0)),
    "frozen trunk": Case(forked(trunk={"tp": 2}), train={"trainable": ("generation", "rq_head", "understanding")}),
    "frozen branches": Case(forked(), train={"trainable": ("trunk", "projector")}),
    "uncertainty, dropout": Case(
        forked(trunk={"dp": 2}, generation={"tp": 2}),
        model={
            "rq_head": RqHeadConfig(hidden_size=24, attention_size=32, num_attention_heads=4, num_blocks=1, dropout=0.2)
        },
        train={"loss_weighting": "uncertainty"},
    ),
    "gradnorm": Case(
        forked(trunk={"tp": 2}, understanding={"dp": 2}, generation={"tp": 2}),
        train={"loss_weighting": "gradnorm", "gradnorm": {"rate": 0.5}},
    ),
    "gradnorm, colocated, through DeepSpeed's hooks": Case(
        {"colocated_tp": 2, "reduce_each_backward": True},
        ranks=4,
        train={"loss_weighting": "gradnorm", "gradnorm": {"rate": 0.5}},
    ),
    "reduced at every backward": Case(forked(trunk={"dp": 2}, generation={"dp": 2}, reduce_each_backward=True)),
    "sequence parallel": Case(forked(trunk={"tp": 2}, generation={"tp": 2}), sequence_parallel=True),
    # A product rounds to 8 bits, 2^-9 relative; sums in another order come out as much apart, and 10 steps carry it on.
    "bf16": Case(
        forked(trunk={"tp": 2}, understanding={"dp": 2}), sequences=(2, 2), train={"precision": "bf16"}, tolerance=2**-7
    ),
    "one in flight": Case(forked(trunk={"tp": 2}, in_flight=1)),
    "colocated tp 2 dp 2": Case({"colocated_tp": 2}, ranks=4),
    "colocated dp 2": Case({}, ranks=2),
    "separate first layers, dp 2": Case({}, ranks=2, model=SEPARATE),
    "separate first layers, dp 4": Case({}, ranks=4, model=SEPARATE, sequences=(4, 4)),
    "separate first layers, tp 2": Case({"colocated_tp": 2}, ranks=2, model=SEPARATE),
    "separate first layers, tp 2 dp 2": Case({"colocated_tp": 2}, ranks=4, model=SEPARATE),
    "separate first layers, reduced at every backward": Case({"reduce_each_backward": True}, ranks=2, model=SEPARATE),
    "separate first layers, frozen trunk": Case(
        {"reduce_each_backward": True}, ranks=2, model=SEPARATE, train={"trainable": ("understanding", "generation")}
    ),
}
QUICK = {"trunk tp 2"}
"""Cases of the fast tests."""
CASES_WITH_NCCL_RULES = (
    "one rank a stage",
    "trunk tp 2",
    "trunk dp 2",
    "trunk tp 2 dp 2, branches dp 2",
    "uneven dp",
    "uneven dp, by replica",
    "tp everywhere",
    "no understanding",
    "frozen trunk",
    "frozen branches",
    "one in flight",
    "sequence parallel",
    "wider branch than trunk",
)
"""Cases, of different transfers, that also run with a data plane that blocks as NCCL does."""


def model_of(case: Case) -> ModelConfig:
    return shallow_config(num_key_value_heads=4, **case.model)


def config_of(case: Case, optimizer: str) -> TrainConfig:
    understanding, generation = case.sequences
    values = dict(
        steps=STEPS,
        global_batch_size=GlobalBatchSize(understanding=understanding, generation=generation),
        optimizer=optimizer,
        learning_rate=OPTIMIZERS[optimizer],
        weight_decay=0.1,
        max_grad_norm=0.5,
        loss_weights=PerTask(understanding=0.7, generation=1.5),
        activation_checkpointing=optimizer == "adamw",
        precision="fp32",
    )
    return TrainConfig(**{**values, **case.train})


def sequences_of(task: Task, *, step: int, number: int):
    """Packed sequence `number` of a step: of random length, the same for every layout."""
    seed = (step * 31 + number) * 2 + (task is Task.GENERATION)
    generator = torch.Generator().manual_seed(seed)
    length = int(torch.randint(3, 16, (1,), generator=generator))
    text = torch.randint(5, 299, (length,), generator=generator).tolist()
    return packed_sequence(task, texts=[text], seq_len=SEQ_LEN, seed=seed)


def optimizers_of(with_nccl_rules: bool) -> list[str]:
    """Returns all optimizers; only the first for a data plane, which knows nothing of them."""
    return list(OPTIMIZERS)[: 1 if with_nccl_rules else None]


def train(rank_env: RankEnvironment, case: Case, layout: LayoutConfig, with_nccl_rules: bool = False):
    """Returns, by optimizer, the losses and norm of each step, and on the leader the final weights."""
    torch.set_num_threads(1)
    if case.sequence_parallel:
        torch.cuda.current_device = lambda: "cpu"
        stage_builder.uses_sequence_parallel = lambda layout, world: world.coordinate.stage is Stage.TRUNK
    outcomes = {}
    with join_world(rank_env, layout, timeout_seconds=60) as world:
        if with_nccl_rules:
            world = dataclasses.replace(world, data_plane=nccl_rules())
        for optimizer in optimizers_of(with_nccl_rules):
            config = config_of(case, optimizer)
            present = {task: n for task, n in zip(Task, case.sequences, strict=True) if n}
            if layout.kind == "forked" and world.coordinate.stage != "trunk" and world.coordinate.stage not in present:
                continue
            stage = open_stage(world, config, model=model_of(case), layout=layout, seq_len=SEQ_LEN, name=optimizer)
            figures, balance = [], LossBalance()
            for step in range(STEPS):
                sequences = {}
                if stage.reads_data:
                    dp, dp_rank = world.dp_group.size(), world.coordinate.dp_rank
                    sequences = {
                        task: [sequences_of(task, step=step, number=number) for number in range(dp_rank, n, dp)]
                        for task, n in present.items()
                    }
                result = run_step(stage, sequences, learning_rate(config, step / config.steps), balance=balance)
                norms = result.fork_gradient_norms
                balance = rebalanced(balance, config, losses=result.losses, norms=norms)
                figures.append([*result.losses.values(), result.gradient_norm, *norms.values()])
            outcomes[optimizer] = torch.tensor(figures), weights_of(stage, model_of(case))
            stage.engine.close()
    return outcomes


@pytest.fixture(scope="module")
def one_process():
    """Returns the outcome of a case in one process; layouts of the same work share it."""
    known = {}

    def outcomes_of(case: Case):
        work = repr((case.sequences, case.model, case.train))
        if work not in known:
            (known[work],) = run_on_ranks(train, 1, case, LayoutConfig())
        return known[work]

    return outcomes_of


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_losses_norms_and_weights_are_those_of_one_process(name, one_process):
    case = CASES[name]
    assert_equal(case, one_process(case), with_nccl_rules=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES_WITH_NCCL_RULES)
def test_transfers_by_the_rules_of_nccl_change_nothing(name, one_process):
    case = CASES[name]
    assert_equal(case, one_process(case), with_nccl_rules=True)


def assert_equal(case: Case, expected, *, with_nccl_rules: bool):
    layout = LayoutConfig(**case.layout)
    by_rank = run_on_ranks(train, case.ranks or num_ranks_of(layout), case, layout, with_nccl_rules)
    for optimizer in optimizers_of(with_nccl_rules):
        figures = [outcomes[optimizer][0] for outcomes in by_rank if outcomes]
        assert all(torch.equal(one, other) for one, other in itertools.pairwise(figures)), "all ranks see the same"
        expected_figures, expected_weights = expected[optimizer]
        torch.testing.assert_close(figures[0], expected_figures, rtol=case.tolerance, atol=1e-6)
        weights = next(outcomes[optimizer][1] for outcomes in by_rank if outcomes and outcomes[optimizer][1])
        for name, distance in distances(weights, expected_weights, together="precision" in case.train).items():
            if optimizer == "sgd" or not name.endswith(ROUNDING_ONLY):
                assert distance < case.tolerance, f"{optimizer}: {name} differs by {distance:.1e}"


def distances(weights, expected, *, together: bool) -> dict[str, float]:
    """Relative distance of each parameter, or of all `together`: in bf16 a bias, which starts at zero, is nothing but
    the sum of a few coarse gradients."""
    if together:
        weights, expected = ({"all": torch.cat([w[name].flatten() for name in weights])} for w in (weights, expected))
    return {
        name: float((w - expected[name]).norm() / expected[name].norm().clamp(min=1e-9)) for name, w in weights.items()
    }
