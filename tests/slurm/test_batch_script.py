"""Ends and restarts of slurm/train.sbatch; its ranks are shell commands that stand in for `ufork train`."""

import sys

import pytest

from tests.slurm.slurm_cluster import CPUS_PER_NODE
from ufork.run_folder import RunFolder

PYTHON = """#!/bin/bash
[[ $3 != train ]] || eval "$RANK"
"""
SAVES = "trap 'exit 75' USR1 TERM; echo ready ${SLURM_RESTART_COUNT:-0}; sleep 100 & wait"
NOTHING = ("--output=/dev/null", "--wrap=true")
ONCE = "((SLURM_RESTART_COUNT == 0)) || exit 0; echo ready ${SLURM_RESTART_COUNT:-0};"


@pytest.fixture
def start(tmp_path, cluster, jobs_of):
    """Returns a function that submits one rank on each of two nodes."""
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    jobs = jobs_of(tmp_path)

    def submit(rank, *options, max_restarts=3, checks_nodes=False):
        values = {
            "RANK": rank,
            "UFORK_RUN": str(tmp_path),
            "UFORK_PYTHON": str(python),
            "UFORK_CHECK_NODES": str(int(checks_nodes)),
            "UFORK_MAX_RESTARTS": str(max_restarts),
        }
        layout = ("--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path}/slurm/logs/%j.log", *options)
        set_values = [f"{name}={value}" for name, value in values.items()]
        (tmp_path / "slurm" / "logs").mkdir(parents=True, exist_ok=True)
        job = cluster.run(
            "env",
            "--unset=OMP_NUM_THREADS",
            *set_values,
            "sbatch",
            "--parsable",
            *layout,
            "slurm/train.sbatch",
            "recipe.yaml",
        )
        return job

    submit.jobs = jobs
    return submit


def wait_for_ranks(start, job, restart=0):
    log = start.jobs.run / "slurm" / "logs" / f"{job}-0.log"
    start.jobs.wait("ranks", lambda: log.exists() and f"ready {restart}\n" in log.read_text())


def reported(jobs):
    return [(event["event"], event["restart"], event["exit_code"], event["reason"]) for event in jobs.events()]


def why(jobs):
    """Returns events without exit codes: which one a shell gets of a step that ends as a signal arrives is random."""
    return [(event, restart, reason) for event, restart, _, reason in reported(jobs)]


@pytest.mark.slow
def test_a_failure_ends_the_job_and_cancels_dependent_jobs(start, cluster):
    job = start('mkdir -p "${UFORK_FAILURE_FILE%/*}"; echo "$SLURM_PROCID" >"$UFORK_FAILURE_FILE"; exit 3')
    after = cluster.run("sbatch", "--parsable", f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes", *NOTHING)
    start.jobs.wait_for_state(job, "FAILED")
    assert start.jobs.field(job, "ExitCode") == "3:0"
    assert reported(start.jobs)[-1][:3] == ("ended", 0, 3)
    start.jobs.wait_for_state(after, "CANCELLED")
    failures = RunFolder(start.jobs.run).job_failures(int(job), restart=0)
    assert {path.name: path.read_text() for path in failures.iterdir()} == {"0.json": "0\n", "1.json": "1\n"}


@pytest.mark.slow
def test_a_job_ends_when_its_restarts_are_used_up(start, cluster):
    job = start(SAVES, max_restarts=1)
    for restart in (0, 1):
        wait_for_ranks(start, job, restart)
        cluster.run("scancel", "--batch", "--signal=USR1", job)
    start.jobs.wait_for_state(job, "FAILED")
    assert why(start.jobs)[-1] == ("ended", 1, "stopped by a signal; all 1 restarts are used up")


@pytest.mark.slow
def test_a_cancelled_job_is_reported_as_ended(start, cluster):
    job = start(SAVES)
    wait_for_ranks(start, job)
    cluster.run("scancel", job)
    start.jobs.wait("end", lambda: why(start.jobs)[-1] == ("ended", 0, "cancelled, or out of time"))


@pytest.mark.slow
def test_a_preempted_job_is_reported_as_requeued(start, cluster):
    job = start(f"{ONCE} {SAVES}")
    wait_for_ranks(start, job)
    cluster.run("sbatch", "--partition=urgent", "--nodes=3", "--exclusive", *NOTHING)
    start.jobs.wait_for_state(job, "COMPLETED")
    assert why(start.jobs)[1] == ("requeued", 0, "preempted, or a node was lost")


@pytest.mark.slow
def test_a_silent_node_is_excluded_before_slurm_notices(start, cluster):
    job = start(f"{ONCE} sleep 4; exit 1")
    wait_for_ranks(start, job)
    cluster.kill_slurmd("node2")
    start.jobs.wait_for_state(job, "COMPLETED")
    assert reported(start.jobs)[1] == ("requeued", 0, 1, "lost nodes: node2")
    assert start.jobs.field(job, "NodeList") == "node[1,3]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "threads"), [(("--exclusive",), CPUS_PER_NODE), (("--cpus-per-task=3",), 3), ((), 1)]
)
def test_a_rank_gets_its_share_of_the_cores_of_its_node(start, options, threads):
    job = start("echo $OMP_NUM_THREADS $SLURM_CPUS_PER_TASK", *options)
    start.jobs.wait_for_state(job, "COMPLETED")
    for rank in range(2):
        log = (start.jobs.run / "slurm" / "logs" / f"{job}-{rank}.log").read_text()
        assert log.splitlines()[-1] == f"{threads} {threads}"


COUNTS_GPUS = """#!/bin/bash
[[ $3 != health || $* == *--summarize* ]] || echo "$SLURM_GPUS_ON_NODE" "${@: -1}" >"$UFORK_RUN/gpus-$SLURM_PROCID"
"""


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--gpus-per-node=4", "--gpus-per-task=2"])
def test_the_check_of_a_node_gets_all_gpus_of_the_job_there(start, option):
    (start.jobs.run / "python").write_text(COUNTS_GPUS)
    job = start("", "--ntasks-per-node=2", option, checks_nodes=True)
    start.jobs.wait_for_state(job, "COMPLETED")
    assert [(start.jobs.run / f"gpus-{node}").read_text() for node in range(2)] == ["4 4\n"] * 2


WITHOUT_NETWORK = f"""#!/bin/bash
[[ $3 != train ]] || exit 0
[[ $SLURMD_NODENAME != node1 ]] || export GLOO_SOCKET_IFNAME=none
[[ $3 != health ]] || set -- "$@" --timeout 15
exec {sys.executable} "$@"
"""


@pytest.mark.slow
def test_a_node_that_hinders_all_exchanges_is_excluded_alone(start):
    """gloo fails on node1, so node2 and node3 wait for it in the exchange of all three."""
    (start.jobs.run / "python").write_text(WITHOUT_NETWORK)
    job = start("", "--nodes=3", checks_nodes=True)
    start.jobs.wait_for_state(job, "RUNNING")
    start.jobs.wait("start", (start.jobs.run / "slurm" / "jobs.jsonl").exists)
    start.jobs.wait("exclusion of node1", lambda: "unfit nodes: node1" in str(why(start.jobs)), seconds=400)
    log = (start.jobs.run / "slurm" / "logs" / f"{job}.log").read_text()
    assert "node node1: cannot exchange data with" in log and "node node2: fit" in log and "node node3: fit" in log


@pytest.mark.slow
def test_a_job_of_two_nodes_that_cannot_exchange_data_ends_and_excludes_neither(start):
    (start.jobs.run / "python").write_text(WITHOUT_NETWORK)
    job = start("", "--nodelist=node1,node2", checks_nodes=True)
    start.jobs.wait_for_state(job, "FAILED")
    assert why(start.jobs)[-1][2].startswith("the health check of the nodes failed")
    log = (start.jobs.run / "slurm" / "logs" / f"{job}.log").read_text()
    assert "node1, node2 did not exchange data with all nodes, and nothing shows which node is at fault" in log
