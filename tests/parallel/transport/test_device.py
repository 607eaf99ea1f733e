"""All ranks compute on one kind of device, or all raise the same error; devices are invented."""

import threading
import types
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_on_ranks
from ufork.errors import ConfigError, MachineError, PeerError
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport import device, stage_world
from ufork.parallel.transport.device import DeviceReport, agree_on_device, decide, report_device

SECOND = timedelta(seconds=1)


def on_cuda(rank, *, host="n1", local_rank=None, uuid=None, native_bf16=True):
    local_rank = rank if local_rank is None else local_rank
    uuid = f"{host}-{local_rank}" if uuid is None else uuid
    return DeviceReport(
        rank=rank, local_rank=local_rank, host=host, kind="cuda", uuid=uuid, native_bf16=native_bf16, num_visible=1
    )


def on_cpu(rank, host="n2", **values):
    return DeviceReport(rank=rank, local_rank=0, host=host, kind="cpu", **values)


def test_ranks_that_all_have_their_own_gpu_or_all_none_agree():
    assert decide([on_cuda(0), on_cuda(1), on_cuda(2, host="n2", local_rank=0)]).native_bf16
    assert not decide([on_cpu(0), on_cpu(1, native_bf16=True)]).native_bf16


def test_one_device_without_native_bf16_decides_for_all():
    assert not decide([on_cuda(0), on_cuda(1, native_bf16=False)]).native_bf16


def test_a_driver_that_fails_is_an_error_that_names_the_rank_its_host_and_the_reason():
    ill = on_cpu(1, trouble="The NVIDIA driver on your system is too old")
    with pytest.raises(MachineError, match="rank 1 on n2: .*driver on your system is too old.*CUDA_VISIBLE_DEVICES="):
        decide([on_cuda(0), ill])
    with pytest.raises(MachineError, match="so do 1 other ranks"):  # a whole job does not fall back to the CPU
        decide([ill, ill])


def test_a_machine_without_gpus_among_others_is_named():
    with pytest.raises(MachineError, match=r"1 of 2 ranks .* first of them rank 1 on n2 \(it has no NVIDIA device\)"):
        decide([on_cuda(0), on_cpu(1)])


def test_a_request_for_the_cpu_by_some_ranks_only_is_refused():
    with pytest.raises(ConfigError, match=r"rank 1 on n2 \(CUDA_VISIBLE_DEVICES=\)"):
        decide([on_cuda(0), on_cpu(1, requested="CUDA_VISIBLE_DEVICES=")])


def test_more_ranks_than_gpus_are_refused_with_both_numbers():
    ranks = [on_cuda(rank, uuid=f"gpu {rank % 2}") for rank in range(3)]
    with pytest.raises(ConfigError, match="n1 has 3 ranks and 2 GPUs for them: ranks 0 and 2 would share one"):
        decide(ranks)


def test_ranks_with_the_same_local_rank_share_a_gpu_on_purpose():
    decide([on_cuda(rank, local_rank=0, uuid="the only one") for rank in range(3)])


@pytest.fixture
def gpus(monkeypatch):
    """A machine with as many GPUs visible as a test says, each of compute capability 9.0."""

    def visible(num, *, capability=(9, 0)):
        major, minor = capability
        selected = []
        monkeypatch.setattr(device, "has_cuda_device", lambda: True)
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num)
        monkeypatch.setattr(torch.cuda, "set_device", selected.append)
        monkeypatch.setattr(torch, "ones", lambda *sizes, device: torch.zeros(1))
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda index: types.SimpleNamespace(name="GPU", major=major, minor=minor, uuid=f"uuid {index}"),
        )
        return selected

    return visible


def rank_environment(rank, local_rank):
    return RankEnvironment(rank=rank, world_size=16, local_rank=local_rank, master_address="", master_port=1)


def test_a_rank_takes_the_device_of_its_local_rank_or_the_only_one_it_sees(gpus):
    selected = gpus(8)
    assert report_device(rank_environment(11, 3), {}).index == 3
    gpus(1)
    report = report_device(rank_environment(11, 3), {"CUDA_VISIBLE_DEVICES": "3"})
    assert (report.kind, report.index, report.uuid, selected) == ("cuda", 0, "uuid 0", [3])


@pytest.mark.parametrize(("capability", "native"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_only_ampere_and_newer_compute_bf16_natively(gpus, capability, native):
    gpus(1, capability=capability)
    assert report_device(rank_environment(0, 0), {}).native_bf16 is native


def test_a_device_on_which_no_kernel_runs_is_trouble(gpus, monkeypatch):
    gpus(1)

    def fails(*sizes, device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors")

    monkeypatch.setattr(torch, "ones", fails)
    report = report_device(rank_environment(0, 0), {})
    assert report.kind == "cpu" and report.trouble.startswith("CUDA error: no kernel image is available for execution")


@pytest.mark.parametrize(("has_device", "trouble"), [(True, "Torch not compiled with CUDA enabled"), (False, "")])
def test_a_build_of_torch_without_cuda_is_trouble_only_where_there_is_a_gpu(monkeypatch, has_device, trouble):
    def fails():
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(device, "has_cuda_device", lambda: has_device)
    monkeypatch.setattr(torch.cuda, "init", fails)
    assert report_device(rank_environment(0, 0), {}).trouble.startswith(trouble)


@pytest.mark.gpu
def test_a_rank_runs_a_kernel_on_its_gpu():
    report = report_device(rank_environment(0, 0), {})
    assert (report.kind, report.index, torch.cuda.current_device()) == ("cuda", 0, 0)
    assert report.name and report.uuid and report.native_bf16 == torch.cuda.is_bf16_supported(including_emulation=False)


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES=", "CUDA_VISIBLE_DEVICES=-1", "DS_ACCELERATOR=cpu"])
def test_the_user_can_ask_for_the_cpu(gpus, variable):
    gpus(1)
    report = report_device(rank_environment(0, 0), dict([variable.split("=")]))
    assert (report.kind, report.requested, report.trouble) == ("cpu", variable, "")


def test_a_rank_that_does_not_report_is_named():
    with pytest.raises(PeerError, match="rank 1 of 2 has not reported its device within 0.1 s"):
        agree_on_device(dist.HashStore(), on_cuda(0), 2, timedelta(seconds=0.1))


def test_every_rank_gets_the_same_decision():
    store, decisions = dist.HashStore(), {}

    def run(rank):
        decisions[rank] = agree_on_device(store, on_cuda(rank, native_bf16=rank != 2), 3, 10 * SECOND)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [decisions[rank].native_bf16 for rank in range(3)] == [False] * 3


def run_with_an_ill_driver(rank_env: RankEnvironment):
    reports = [on_cuda(0), on_cpu(1, trouble="driver/library version mismatch"), on_cuda(2)]
    stage_world.report_device = lambda rank_env, environment: reports[rank_env.rank]
    with pytest.raises(MachineError) as raised, stage_world.join_world(rank_env, timeout_seconds=30):
        pass
    return str(raised.value), raised.value.fields["rank"]


def test_an_ill_driver_is_the_same_error_on_every_rank():
    answers = run_on_ranks(run_with_an_ill_driver, 3)
    assert answers == answers[:1] * 3
    assert answers[0][0].startswith("rank 1 on n2: ") and "version mismatch" in answers[0][0]
    assert answers[0][1] == 1
