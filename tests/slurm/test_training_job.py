"""`ufork submit` on a real Slurm: whatever befalls a job of two nodes, it ends as an undisturbed run does."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import make_run, train

from benchmarks.kill import losses

FORKED = ("layout.kind=forked", "layout.trunk.tp=2", "model.num_kv_heads=4", "model.tie_text_head=false")
STEPS = 60
OVERRIDES = (
    *FORKED,
    "train.linear=torch",
    "train.timeout_seconds=40",
    "stages.align.train.steps=2",
    f"stages.all.train.steps={STEPS}",
    "stages.all.train.draw_every_steps=0",
    "stages.all.train.checkpoint.every_steps=4",
)
TWO_NODES = ("--nodes", "2", "--ranks-per-node", "2", "--time", "10:00")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    recipe, run = make_run(tmp_path_factory.mktemp("undisturbed"), "run")
    train(recipe, *OVERRIDES)
    return run


def assert_equal(run, undisturbed):
    assert losses(run.stage("all")) == losses(undisturbed.stage("all"))
    weights, others = (load_file(each.weights("all") / "model.safetensors") for each in (run, undisturbed))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in others)


@pytest.mark.proof
def test_a_job_goes_on_after_the_time_limit_s_signal_preemption_and_a_lost_node(
    tmp_path, undisturbed, cluster, jobs_of
):
    recipe, run = make_run(tmp_path, "run")
    jobs = jobs_of(run.path)
    (job,) = jobs.submit(recipe, *OVERRIDES, *TWO_NODES)

    jobs.wait_for_step("all", 5)
    cluster.run("scancel", "--batch", "--signal=USR1", str(job))
    jobs.wait("restart", lambda: jobs.field(job, "Restarts") == "1")

    jobs.wait_for_step("all", 20)
    urgent = cluster.run("sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive", "--wrap=sleep 2")
    jobs.wait("restart", lambda: jobs.field(job, "Restarts") == "2")
    jobs.wait_for_state(urgent, "COMPLETED")

    jobs.wait_for_step("all", 40)
    lost = jobs.field(job, "NodeList").strip("]")[-1]
    cluster.kill_node(f"node{lost}")
    jobs.wait("restart", lambda: jobs.field(job, "Restarts") == "3")

    jobs.wait_for_state(job, "COMPLETED")
    assert_equal(run, undisturbed)
    print(jobs.events(), jobs.logs())
