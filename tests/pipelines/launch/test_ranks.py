import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.launch import ranks as launch
from pipelines.launch.ranks import joined_environment, prepare_environment, process_context, run_ranks
from ufork.errors import ConfigError
from ufork.parallel import nvidia_devices
from ufork.parallel.rank_environment import RankEnvironment

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_JOB_ID": "7042",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "node7",
}

PROGRAM = """
import sys, time
from pathlib import Path
from pipelines.launch import ranks as launch

def run(rank_env, folder, failing):
    (Path(folder) / str(rank_env.rank)).write_text(str(__import__("os").getpid()))
    if rank_env.rank == failing:
        raise SystemExit("no more") if failing == 2 else ValueError("bad luck")
    time.sleep(120)

if __name__ == "__main__":
    launch.PRELOADED_MODULES = ()
    launch.run_ranks(run, 3, sys.argv[1], int(sys.argv[2]))
"""


def test_torchrun_rank_is_joined():
    expected = RankEnvironment(rank=5, world_size=8, local_rank=1, master_address="node1", master_port=29500)
    assert joined_environment(TORCHRUN, None) == joined_environment({**SRUN, **TORCHRUN}, 8) == expected


def test_srun_rank_is_joined():
    rank_env = joined_environment(SRUN, None)
    assert (rank_env.rank, rank_env.world_size, rank_env.local_rank, rank_env.master_address) == (3, 4, 1, "node7")


def test_variables_of_mpi_that_agree_or_are_of_others_do_not_matter():
    assert joined_environment({**SRUN, "PMI_SIZE": "4"}, None) == joined_environment(SRUN, None)
    assert joined_environment({**TORCHRUN, "PMI_SIZE": "2"}, None) == joined_environment(TORCHRUN, None)
    assert joined_environment({"OMPI_COMM_WORLD_SIZE": "1"}, 2) is None


def test_the_secret_is_the_launchers_and_torchrun_may_serve_the_store():
    secret = {"UFORK_JOB_SECRET": "abc", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for launched, serves in ((TORCHRUN, True), (SRUN, False)):
        rank_env = joined_environment({**launched, **secret}, None)
        assert (rank_env.secret, rank_env.launcher_serves_store) == ("abc", serves)
        assert "abc" not in repr(rank_env) and not joined_environment(launched, None).launcher_serves_store


def test_two_steps_two_jobs_and_two_starts_of_a_job_have_their_own_ports():
    changes = [{}, {"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "7043"}, {"SLURM_RESTART_COUNT": "1"}]
    ports = {joined_environment({**SRUN, **change}, None).master_port for change in changes}
    assert len(ports) == len(changes)
    assert all(1024 < port < 32768 for port in ports)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[7-9]", "node7"),
        ("n[1-3,7]", "n1"),
        ("n[001-003,7],login1", "n001"),
        ("login1,n[001-003]", "login1"),
        ("rack[2-3]n[10,12]-ib,other", "rack2n10-ib"),
        ("node7", "node7"),
        ("a,b", "a"),
    ],
)
@pytest.mark.parametrize("name", ["SLURM_JOB_NODELIST", "SLURM_STEP_NODELIST"])
def test_first_host_of_several_is_the_master_without_scontrol(monkeypatch, tmp_path, name, nodes, first):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert joined_environment({**SRUN, name: nodes}, None).master_address == first


@pytest.mark.parametrize("name", TORCHRUN)
@pytest.mark.parametrize("value", ["", None])
def test_incomplete_variables_of_torchrun_are_refused(name, value):
    environment = {**TORCHRUN, name: value}
    with pytest.raises(ConfigError, match=f"^{name}: missing or empty, while other variables of torchrun are set"):
        joined_environment({key: text for key, text in environment.items() if text is not None}, None)


def test_a_job_of_one_node_without_torchrun_is_started_here():
    assert joined_environment({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "1"}, 4) is None


def test_srun_is_joined_though_a_variable_of_torchrun_is_set():
    assert joined_environment({**SRUN, "RANK": "3"}, None).master_address == "node7"


@pytest.mark.parametrize(
    "name", ["SLURM_JOB_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_NODELIST"]
)
@pytest.mark.parametrize("value", ["", None])
def test_incomplete_variables_of_srun_are_refused(name, value):
    environment = {**SRUN, name: value}
    with pytest.raises(ConfigError, match=f"{name}: missing or empty, while SLURM_STEP_ID=0"):
        joined_environment({key: text for key, text in environment.items() if text is not None}, None)


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        ({**TORCHRUN, "MASTER_PORT": "a"}, "^MASTER_PORT: expected a whole number .* found 'a'"),
        ({**TORCHRUN, "RANK": "-1"}, "^RANK: expected a whole number .* found '-1'"),
        ({**TORCHRUN, "RANK": "8"}, "found 1, 8, 8"),
        ({**SRUN, "SLURM_PROCID": "4"}, "found 1, 4, 4"),
        ({**SRUN, "SLURM_JOB_ID": "7042_3"}, "^SLURM_JOB_ID: expected a whole number .* found '7042_3'"),
        ({**TORCHRUN, "WORLD_SIZE": "9" * 5000}, "^WORLD_SIZE: expected a whole number"),
        ({**TORCHRUN, "MASTER_PORT": "99999"}, "^MASTER_PORT=99999: expected a port"),
        ({**SRUN, "SLURM_JOB_NODELIST": "n[1"}, "expected a list of nodes, found 'n\\[1'"),
        ({**SRUN, "SLURM_JOB_NODELIST": ",n1"}, "expected a list of nodes, found ',n1'"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "^OMPI_COMM_WORLD_SIZE=2: mpirun has started"),
        ({"PMI_SIZE": "2"}, "^PMI_SIZE=2: mpirun has started"),
        ({**SRUN, "OMPI_COMM_WORLD_SIZE": "8"}, "^OMPI_COMM_WORLD_SIZE=8: mpirun has started"),
    ],
)
def test_variables_that_make_no_rank_are_refused(environment, fault):
    with pytest.raises(ConfigError, match=fault):
        joined_environment(environment, None)


@pytest.mark.parametrize(
    "environment",
    [{}, {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}],
    ids=["none", "sbatch"],
)
def test_outside_of_torchrun_and_srun_there_is_nothing_to_join(environment):
    assert joined_environment(environment, 4) is None


def test_other_number_of_ranks_than_were_started_is_refused():
    with pytest.raises(ConfigError, match="--ranks 4: torchrun or srun has started 8 ranks"):
        joined_environment(TORCHRUN, 4)


def test_ranks_start_inside_an_interactive_step_of_one_task():
    assert joined_environment({**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}, 4) is None


def test_one_rank_is_this_process(monkeypatch):
    monkeypatch.setattr(launch, "joined_environment", lambda environment, num_ranks: None)
    seen = []
    run_ranks(lambda rank_env, word: seen.append((rank_env.rank, rank_env.world_size, word, os.getpid())), None, "x")
    assert seen == [(0, 1, "x", os.getpid())]


def test_cores_are_shared_unless_the_user_says_otherwise():
    environment = {"OMP_NUM_THREADS": "3"}
    prepare_environment(environment, num_local_ranks=2)
    assert environment["OMP_NUM_THREADS"] == "3"
    environment = {}
    prepare_environment(environment, num_local_ranks=4096)
    assert environment["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(("has_device", "hidden"), [(True, False), (True, True), (False, False)])
def test_deepspeed_is_told_to_use_the_cpu_exactly_where_ranks_do(monkeypatch, has_device, hidden):
    monkeypatch.setattr(nvidia_devices, "has_cuda_device", lambda: has_device)
    environment = {"CUDA_VISIBLE_DEVICES": ""} if hidden else {}
    prepare_environment(environment, num_local_ranks=1)
    on_cuda = has_device and not hidden
    assert environment.get("DS_ACCELERATOR") == (None if on_cuda else "cpu")
    assert environment.get("CUDA_DEVICE_MAX_CONNECTIONS") == ("32" if on_cuda else None)


@pytest.mark.parametrize(("has_device", "method"), [(True, "spawn"), (False, "forkserver")])
def test_processes_that_use_cuda_are_not_forked(monkeypatch, has_device, method):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setattr(nvidia_devices, "has_cuda_device", lambda: has_device)
    assert process_context().get_start_method() == method


@pytest.fixture
def started(tmp_path):
    """Starts the program with three ranks that sleep, except the given one; returns the process and its ranks' pids."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    root = Path(__file__).parents[3]
    processes = []

    def start(failing):
        process = subprocess.Popen(
            [sys.executable, str(program), str(tmp_path), str(failing)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
            start_new_session=True,
        )
        processes.append(process)
        wait_until(
            lambda: all((tmp_path / str(rank)).exists() and (tmp_path / str(rank)).read_text() for rank in range(3))
        )
        return process, [int((tmp_path / str(rank)).read_text()) for rank in range(3)]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_until(holds, seconds=30):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_processes_start_where_the_temporary_folder_has_a_long_path(tmp_path):
    """That of a job may be longer than the path of a socket."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    program = (
        "import tempfile; from pipelines.launch.ranks import process_context\n"
        "process = process_context(()).Process(target=print, args=('started',))\n"
        "process.start(); process.join(); print(process.exitcode, tempfile.gettempdir())"
    )
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"started\n0 {folder}\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_the_program(started, sent):
    process, ranks = started(-1)
    os.killpg(process.pid, sent) if sent == signal.SIGINT else process.send_signal(sent)
    assert process.wait(60) != 0
    wait_until(lambda: not any(map(is_running, ranks)))


@pytest.mark.slow
@pytest.mark.parametrize(("failing", "said"), [(1, "rank 1: ValueError: bad luck"), (2, "rank 2: SystemExit: no more")])
def test_failing_rank_is_named_and_the_others_end(started, failing, said):
    process, ranks = started(failing)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert said in errors
    wait_until(lambda: not any(map(is_running, ranks)))
