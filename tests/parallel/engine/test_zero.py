"""The ZeRO-3 engine: the norm of its gradients, and what it asks of DeepSpeed."""

import deepspeed
import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ranks import run_on_ranks
from tests.stages import open_stage
from tests.tiny import packed_sequence, shallow_config
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.vocabulary import Task


class Operations(TorchDispatchMode):
    """Records the operations that run, and the entries of what they return."""

    def __init__(self):
        super().__init__()
        self.numel = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.numel.append(max(t.numel() for t in (result if isinstance(result, list | tuple) else [result])))
        return result


def gradients_of_one_step(rank_env: RankEnvironment, precision: str):
    """Returns the squared norm, with and without one parameter; the same by hand; and the operations it took."""
    torch.set_num_threads(1)
    with join_world(rank_env, timeout_seconds=60) as world:
        config = TrainConfig(global_batch_size=GlobalBatchSize(understanding=2, generation=2), precision=precision)
        stage = open_stage(world, config, model=shallow_config(), seq_len=16)
        engine = stage.engine
        with engine.accumulating():
            for task in Task:
                sequence = packed_sequence(task, texts=[[5, 6 + world.rank]], seq_len=16)
                engine.backward(engine.forward(sequence.to(engine.device), 1.0)[0], task)
        if engine.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        with Operations() as operations:
            squared = engine.squared_gradients()
        if engine.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        name = "model.trunk.token_embedding.weight"
        without = engine.squared_gradients(exclude=(name,))
        shards = [engine._engine.optimizer.averaged_gradients[0], engine._engine.optimizer.averaged_gradients[1]]
        by_hand = sum(float(shard.double().square().sum()) for group in shards for shard in group)
        largest = max(shard.numel() for group in shards for shard in group)
        embedding = engine.whole_gradient(name).double().square().sum()
        engine.close()
        probed = set(vars(deepspeed.ops).get("__compatible_ops__", ()))
        return squared, by_hand, float(squared - without), float(embedding), operations.numel, largest, probed


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_the_squared_norm_takes_few_operations_and_copies_no_gradient(precision):
    outcomes = run_on_ranks(gradients_of_one_step, 2, precision)
    for squared, by_hand, _, _, numel, largest, probed in outcomes:
        assert (squared.dtype, squared.shape) == (torch.float64, ()), "the host reads it with the losses"
        assert float(squared) == pytest.approx(by_hand, rel=1e-5)
        assert len(numel) < 10, "not one operation for each parameter"
        assert max(numel) < largest / 10, "no gradient is copied"
        assert probed == {"deepspeed_shm_comm"}, "DeepSpeed was not made to try the machine's compilers"
    assert sum(outcome[2] for outcome in outcomes) == pytest.approx(outcomes[0][3], rel=1e-5), "the excluded parameter"


def leave_passes_by_an_error(rank_env: RankEnvironment):
    """Rank 1 leaves its passes first; rank 0 does not reduce anything until then, or ever."""
    torch.set_num_threads(1)
    with join_world(rank_env, timeout_seconds=20) as world:
        config = TrainConfig(global_batch_size=GlobalBatchSize(understanding=2, generation=2), precision="fp32")
        stage = open_stage(world, config, model=shallow_config(), seq_len=24)
        with pytest.raises(ValueError, match="bad luck"), stage.engine.accumulating():
            loss, _ = stage.engine.forward(packed_sequence(Task.GENERATION, texts=[[5, 6, 7]], seq_len=24), 1.0)
            stage.engine.backward(loss, Task.GENERATION)
            if world.rank == 0:
                world.store.wait(["rank 1 has left"])
            raise ValueError("bad luck")
        world.store.set("rank 1 has left", "")
        return True


def test_an_error_in_the_passes_is_raised_without_waiting_for_the_other_ranks():
    assert run_on_ranks(leave_passes_by_an_error, 2) == [True, True]


def count_waits_in_passes(rank_env: RankEnvironment):
    """Returns how often forward and backward passes of four steps wait for all work of the device."""
    torch.set_num_threads(1)
    with join_world(rank_env, timeout_seconds=60) as world:
        config = TrainConfig(global_batch_size=GlobalBatchSize(understanding=1), precision="fp32")
        stage = open_stage(world, config, model=shallow_config(), seq_len=16)
        accelerator, waits = get_accelerator(), []
        wait = accelerator.synchronize
        accelerator.synchronize = lambda *device: waits.append(wait(*device))
        in_passes = []
        for _ in range(4):
            waits.clear()
            sequence = packed_sequence(Task.UNDERSTANDING, texts=[[5, 6]], seq_len=16).to(str(world.device))
            with stage.engine.accumulating():
                stage.engine.backward(stage.engine.forward(sequence, 1.0)[0], Task.UNDERSTANDING)
            in_passes.append(len(waits))
            stage.engine.step(0.1, 1.0)
        return in_passes


def test_no_pass_waits_for_all_work_of_the_device():
    """It would wait for a transfer to a rank that waits for this one."""
    assert run_on_ranks(count_waits_in_passes, 1) == [[0, 0, 0, 0]]


@pytest.mark.gpu
def test_the_squared_norm_does_not_wait_for_the_gpu():
    ((squared, by_hand, *_),) = run_on_ranks(gradients_of_one_step, 1, "bf16")
    assert float(squared) == pytest.approx(by_hand, rel=1e-5)
