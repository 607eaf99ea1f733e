"""Nodes that are fit, unfit or silent; nvidia-smi is a stand-in that prints what a test says."""

import json
import os

import pytest

from pipelines import cli
from pipelines.cluster import node_health
from pipelines.cluster.node_health import NodeReport, check_gpus, unfit_nodes
from ufork.errors import PeerError

IDLE = "NVIDIA H100 80GB HBM3, 4, 0"
WARNING = "WARNING: infoROM is corrupted at gpu 0000:4E:00.0"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    def prints(*gpus, exit_code=0, processes=(), after=()):
        lines = "\n".join([*(f"uuid{number}, {number}, {gpu}" for number, gpu in enumerate(gpus)), *after])
        processes = "\n".join(processes)
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f"#!/bin/sh\ncase $1 in *compute-apps*) printed='{processes}';; *) printed='{lines}';; esac\n"
            f'echo "$printed"\nexit {exit_code}\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return prints


def test_idle_gpus_are_fit(nvidia_smi):
    nvidia_smi(IDLE, IDLE)
    check = check_gpus(2, os.environ)
    assert (check.names, check.faults, check.remarks) == (["NVIDIA H100 80GB HBM3"] * 2, [], [])


@pytest.mark.parametrize(
    ("gpu", "fault"),
    [
        ("H100, 70000, 0", "GPU 1 is in use (70000 MiB)"),
        ("H100, 4, 12", "GPU 1 has 12 uncorrected memory errors"),
    ],
)
def test_a_fault_of_a_gpu_is_named(nvidia_smi, gpu, fault):
    nvidia_smi(IDLE, gpu)
    assert check_gpus(2, os.environ).faults == [fault]


def test_a_gpu_with_a_process_is_in_use_whatever_memory_it_takes(nvidia_smi):
    nvidia_smi("GB10, [N/A], 0", "GB10, [N/A], 0", processes=["uuid1, 77, python3"])
    assert check_gpus(2, os.environ).faults == ["GPU 1 is in use by python3 (pid 77) ([N/A] MiB)"]


def test_gpus_without_ecc_are_no_fault(nvidia_smi):
    nvidia_smi("RTX 4090, 12, [N/A]")
    assert check_gpus(1, os.environ).faults == []


def test_a_warning_of_nvidia_smi_is_reported_and_is_no_fault(nvidia_smi):
    nvidia_smi(IDLE, after=[WARNING])
    check = check_gpus(1, os.environ)
    assert (check.names, check.faults, check.remarks) == (["NVIDIA H100 80GB HBM3"], [], [WARNING])
    assert NodeReport(node="n1", remarks=check.remarks).describe() == f"fit; nvidia-smi: {WARNING}"


def test_a_missing_gpu_and_a_driver_that_fails_are_faults(nvidia_smi, tmp_path):
    nvidia_smi(IDLE)
    assert check_gpus(8, os.environ).faults == ["1 GPUs, expected 8"]
    nvidia_smi("could not communicate with the NVIDIA driver", exit_code=9)
    assert "could not communicate" in check_gpus(8, os.environ).faults[0]
    (tmp_path / "nvidia-smi").unlink()
    assert "nvidia-smi gives no answer: nvidia-smi is not on the PATH" in check_gpus(8, os.environ).faults[0]


def test_a_driver_that_hangs_is_a_fault(nvidia_smi, tmp_path, monkeypatch):
    nvidia_smi(IDLE)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec /bin/sleep 600\n")
    monkeypatch.setattr(node_health, "GPU_SECONDS", 2)
    assert check_gpus(1, os.environ).faults == ["nvidia-smi gives no answer: nvidia-smi timed out after 2 s"]


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


def test_a_node_in_a_container_has_the_name_that_slurm_gives_it(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    step = {"JOB_ID": "7", "STEP_ID": "0", "PROCID": "0", "NTASKS": "1", "LOCALID": "0", "JOB_NODELIST": "n1"}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert cli.main(["health", str(tmp_path), "--nodes", "n1"]) == 0
    assert (tmp_path / "n1.json").exists()


def report(node, **values):
    return NodeReport(node=node, **values)


def test_nodes_without_fault_are_fit_even_if_they_missed_a_faulty_one():
    missed = "did not finish the exchange of data"
    reports = [report("n1", missed=missed), report("n2", faults=["GPU 0 is in use"]), report("n3", missed=missed)]
    assert unfit_nodes(reports) == ["n2"]


@pytest.mark.parametrize("lost", ["n1", "n2"])
def test_the_node_that_most_others_did_not_reach_is_unfit(lost):
    """The store is on n1: every node that is cut off misses n1 alone."""
    others = [report(node, missed=f"did not reach {lost}", unreached=[lost]) for node in ("n1", "n2", "n3", "n4")]
    cut_off = report(lost, missed="did not reach others", unreached=["n1"] if lost != "n1" else ["n2", "n3", "n4"])
    assert unfit_nodes([cut_off if each.node == lost else each for each in others]) == [lost]


def test_nothing_is_excluded_when_nothing_shows_who_is_at_fault():
    for reports in (
        [report("n1", missed="did not reach n2", unreached=["n2"]), report("n2", missed="did not reach n1")],
        [report(node, missed="cannot exchange data with n9: NCCL hangs") for node in ("n1", "n2", "n3")],
    ):
        with pytest.raises(PeerError, match="nothing shows which node is at fault"):
            unfit_nodes(reports)
