"""Nodes that are fit, unfit or silent; nvidia-smi is a stand-in that prints what a test says."""

import json
import os

import pytest

from pipelines import cli
from pipelines.cluster import node_health
from pipelines.cluster.rendezvous import rendezvous
from pipelines.launch.ranks import free_port
from ufork.errors import PeerError
from ufork.parallel.rank_environment import RankEnvironment

IDLE = "NVIDIA H100 80GB HBM3, 4, 0, 0"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    def prints(*gpus, exit_code=0):
        lines = "\n".join(f"{number}, {gpu}" for number, gpu in enumerate(gpus))
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{lines}\nEND\nexit {exit_code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return prints


def test_idle_gpus_are_fit(nvidia_smi):
    nvidia_smi(IDLE, IDLE)
    assert node_health.gpu_faults(2, os.environ) == (["NVIDIA H100 80GB HBM3"] * 2, [])


@pytest.mark.parametrize(
    ("gpu", "fault"),
    [
        ("H100, 70000, 0, 0", "GPU 1 is in use (70000 MiB, 0 %)"),
        ("H100, 4, 97, 0", "GPU 1 is in use (4 MiB, 97 %)"),
        ("H100, 4, 0, 12", "GPU 1 has 12 uncorrected memory errors"),
    ],
)
def test_a_fault_of_a_gpu_is_named(nvidia_smi, gpu, fault):
    nvidia_smi(IDLE, gpu)
    assert node_health.gpu_faults(2, os.environ)[1] == [fault]


def test_gpus_without_ecc_are_no_fault(nvidia_smi):
    nvidia_smi("RTX 4090, 12, 0, [N/A]")
    assert node_health.gpu_faults(1, os.environ)[1] == []


def test_a_missing_gpu_and_a_driver_that_fails_are_faults(nvidia_smi, tmp_path):
    nvidia_smi(IDLE)
    assert node_health.gpu_faults(8, os.environ)[1] == ["1 GPUs, expected 8"]
    nvidia_smi("couldn't communicate with the NVIDIA driver", exit_code=9)
    assert "couldn't communicate" in node_health.gpu_faults(8, os.environ)[1][0]
    (tmp_path / "nvidia-smi").unlink()
    assert "nvidia-smi gives no answer: nvidia-smi is not on the PATH" in node_health.gpu_faults(8, os.environ)[1][0]


def test_a_driver_that_hangs_is_a_fault(nvidia_smi, tmp_path, monkeypatch):
    nvidia_smi(IDLE)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec /bin/sleep 600\n")
    monkeypatch.setattr(node_health, "GPU_SECONDS", 2)
    assert node_health.gpu_faults(1, os.environ) == (
        [],
        ["nvidia-smi gives no answer: nvidia-smi timed out after 2 s"],
    )


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(node_health, "FREE_GB", 1e9)
    assert "GB free, expected 1e+09" in node_health.free_gb([tmp_path])[1][0]
    assert "gone: cannot be examined" in node_health.free_gb([tmp_path / "gone"])[1][0]


def test_unfit_and_silent_nodes_are_printed(tmp_path, capsys, caplog):
    for node, faults in (("n1", []), ("n2", ["GPU 0 is in use"])):
        (tmp_path / f"{node}.json").write_text(json.dumps({"node": node, "faults": faults}))
    (tmp_path / "n3.json").write_text('{"node": ')
    with caplog.at_level("INFO"):
        assert cli.main(["health", str(tmp_path), "--nodes", "n1,n2,n3,n4", "--summarize"]) == 0
    assert capsys.readouterr().out == "n2,n3,n4\n"
    assert "node n1: fit" in caplog.text and "node n2: GPU 0 is in use" in caplog.text


def test_a_node_that_does_not_arrive_is_named():
    rank_env = RankEnvironment(rank=0, world_size=3, local_rank=0, master_address="127.0.0.1", master_port=free_port())
    with pytest.raises(PeerError, match="n2, n3: not reached within 0.5 s"):
        rendezvous(rank_env, ["n1", "n2", "n3"], on_gpu=False, timeout_seconds=0.5)


def test_a_first_node_that_does_not_arrive_is_named():
    rank_env = RankEnvironment(rank=1, world_size=2, local_rank=0, master_address="127.0.0.1", master_port=free_port())
    with pytest.raises(PeerError, match="n1: not reached within 1 s"):
        rendezvous(rank_env, ["n1", "n2"], on_gpu=False, timeout_seconds=1)
