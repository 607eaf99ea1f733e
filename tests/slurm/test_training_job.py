"""`ufork submit` on a real Slurm: a job of two nodes that is interrupted ends as an undisturbed run does."""

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.kill import losses
from tests.tiny_run import make_run, train
from ufork.checkpoint.folder import CheckpointFolder

FORKED = ("layout.kind=forked", "layout.trunk.tp=2", "model.num_key_value_heads=4", "model.tie_word_embeddings=false")
STEPS = 60
NAP = ("--output=/dev/null", "--wrap=sleep 2")
OVERRIDES = (
    *FORKED,
    "train.timeout_seconds=40",
    f"phases={{all: {{train: {{steps: {STEPS}, checkpoint: {{every_steps: 4}}}}}}}}",
)
ONE_RANK = ("--nodes", "1", "--ranks-per-node", "1", "--time", "10:00", "--no-node-check")
TWO_NODES = ("--nodes", "2", "--ranks-per-node", "2", "--time", "10:00")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    recipe, run = make_run(tmp_path_factory.mktemp("undisturbed"), "run")
    train(recipe, *OVERRIDES)
    return run


def assert_equal(run, undisturbed):
    assert losses(run.phase("all")) == losses(undisturbed.phase("all"))
    weights, others = (load_file(each.phase("all").weights / "model.safetensors") for each in (run, undisturbed))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in others)


@pytest.mark.slow
def test_a_job_resumes_after_the_signal_of_the_time_limit_preemption_and_a_lost_node(
    tmp_path, undisturbed, cluster, jobs_of
):
    recipe, run = make_run(tmp_path, "run")
    jobs = jobs_of(run.path)
    (job,) = jobs.submit(recipe, *OVERRIDES, *TWO_NODES)

    jobs.wait_for_step("all", 5)
    cluster.run("scancel", "--batch", "--signal=USR1", str(job))
    jobs.wait_for_state(job, "RUNNING", restarts=1)

    jobs.wait_for_step("all", 20)
    urgent = cluster.run("sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive", *NAP)
    jobs.wait_for_state(job, "RUNNING", restarts=2)
    jobs.wait_for_state(urgent, "COMPLETED")

    jobs.wait_for_step("all", 40)
    lost = jobs.field(job, "NodeList").strip("]")[-1]
    cluster.kill_node(f"node{lost}")
    jobs.wait_for_state(job, "RUNNING", restarts=3)

    jobs.wait_for_state(job, "COMPLETED")
    assert_equal(run, undisturbed)


@pytest.mark.slow
def test_surviving_ranks_on_a_lost_node_can_write_nothing(tmp_path, undisturbed, cluster, jobs_of):
    """The node is lost to Slurm alone. What runs there sleeps until the restarted job trains, and wakes up."""
    recipe, run = make_run(tmp_path, "run")
    jobs = jobs_of(run.path)
    one_node = ("--nodes", "1", "--ranks-per-node", "4", "--no-node-check", "train.timeout_seconds=300")
    (job,) = jobs.submit(recipe, *OVERRIDES, *one_node)
    jobs.wait_for_step("all", 5)
    lost = jobs.field(job, "NodeList")
    cluster.run_on(lost, "bash", "-c", "kill -STOP -1")
    cluster.kill_slurmd(lost)
    jobs.wait_for_state(job, "RUNNING", restarts=1)
    checkpoints = CheckpointFolder(run.phase("all").checkpoints)
    jobs.wait("second start", lambda: checkpoints.num_starts() == 2)
    # Not srun: once awake, it would make Slurm cancel step 0 of the job, which is the restarted one's by now.
    cluster.run_on(lost, "bash", "-c", "pkill -KILL -x srun; kill -CONT -1")
    jobs.wait_for_state(job, "COMPLETED")
    leader = (run.path / "slurm" / "logs" / f"{job}-0.log").read_text()
    assert "a newer job (start 2 of this run, this is start 1) has taken over" in leader
    assert [event["event"] for event in jobs.events()] == ["submitted", "started", "requeued", "started", "ended"]
    assert_equal(run, undisturbed)


@pytest.mark.slow
def test_a_chain_runs_in_order_and_away_from_an_unfit_node(tmp_path, cluster, jobs_of):
    """The disk of the first node's temporary files is full."""
    recipe, run = make_run(tmp_path, "run")
    jobs = jobs_of(run.path)
    small = tmp_path / "small"
    small.mkdir()
    cluster.run_on("node1", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small))
    only_generation = "{understanding: 0, generation: 2}"
    third = f"phases.generation={{train: {{steps: 2, trainable: [generation], global_batch_size: {only_generation}}}}}"
    chain = ("--nodes", "1", "--ranks-per-node", "1", "--chain", "align,all,generation")
    started = jobs.submit(recipe, third, "phases.all.train.steps=2", *chain, TMPDIR=str(small))
    jobs.wait_for_state(started[0], "RUNNING", restarts=1)
    cluster.run_on("node1", "umount", str(small))
    jobs.wait_for_state(started[-1], "COMPLETED")
    events = [(event["event"], event["job"], event["phase"], event["nodes"]) for event in jobs.events()]
    ended = [event[1:3] for event in events if event[0] == "ended"]
    assert ended == list(zip(started, ("align", "all", "generation"), strict=True))
    assert ("requeued", started[0], "align", "node1") in events and ("ended", started[0], "align", "node2") in events
    assert f"node node1: {small}: 0.0 GB free" in (run.path / "slurm" / "logs" / f"{started[0]}.log").read_text()
    assert run.phase("generation").weights.exists()


@pytest.mark.slow
def test_a_job_runs_with_ugly_names(tmp_path, cluster, jobs_of):
    folder = tmp_path / "ü b 'c' $(touch owned) & ; %j #x"
    folder.mkdir()
    recipe, run = make_run(folder, "mäuse.1-a")
    phase = "Schritt-ä.1"
    jobs = jobs_of(run.path)
    overrides = f"phases={{{phase}: {{train: {{steps: 2}}}}}}"
    (job,) = jobs.submit(recipe.rename(folder / "re cipe's.yaml"), overrides, "--chain", phase, *ONE_RANK)
    jobs.wait_for_state(job, "COMPLETED")
    assert (run.phase(phase).weights / "model.safetensors").is_file()
    assert [(event["event"], event["phase"]) for event in jobs.events()] == [
        ("submitted", phase),
        ("started", phase),
        ("ended", phase),
    ]
    assert (run.job_logs / f"{job}-0.log").is_file() and not list(tmp_path.rglob("owned"))
    assert cluster.run("scontrol", "show", "job", str(job)).splitlines()[0].endswith(f"JobName={run.path.name}-{phase}")
