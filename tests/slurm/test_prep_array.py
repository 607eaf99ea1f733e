"""slurm/prep.sbatch as an array, and the merge after it."""

import pytest

SCRIPT = "slurm/prep.sbatch"
SHARD = """#!/bin/bash
[[ $1 == -m && $2 == pipelines.cli && $3 == shard ]] || exit 2
shift 3
if [[ $1 == merge ]]; then
    cat "$2"/task-* >"$2"/merged
else
    task=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))
    echo "$1 $2 task $task of $SLURM_ARRAY_TASK_COUNT" >"$4/task-$task"
fi
"""
"""Stands in for `ufork shard`."""


@pytest.mark.proof
def test_an_array_makes_shards_and_a_dependent_job_merges_them(tmp_path, cluster, jobs_of):
    python = tmp_path / "python"
    python.write_text(SHARD)
    python.chmod(0o755)
    target = tmp_path / "target"
    target.mkdir()
    jobs = jobs_of(tmp_path)
    sbatch = ("sbatch", "--parsable", f"--output={tmp_path}/%x-%A-%a.log", f"--export=ALL,UFORK_PYTHON={python}")
    array = cluster.run(*sbatch, "--array=3-6", SCRIPT, "classes", "images", "--to", str(target))
    after = (f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes")
    merge = cluster.run(*sbatch, *after, SCRIPT, "merge", str(target))
    jobs.wait_for_state(merge, "COMPLETED")
    assert (target / "merged").read_text().splitlines() == [f"classes images task {task} of 4" for task in range(4)]
