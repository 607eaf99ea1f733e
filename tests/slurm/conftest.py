"""One Slurm of three nodes for all tests here; where it cannot run, they are skipped with the reason."""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.slurm_cluster import Cluster, Unavailable, require_available

ROOT = Path(__file__).parent.parent.parent
RESUMED_WITHIN_SECONDS = 120
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


@pytest.fixture(scope="session")
def cluster():
    try:
        require_available()
    except Unavailable as reason:
        pytest.skip(str(reason))
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, Cluster(Path(folder)) as cluster:
        yield cluster


@dataclass
class Jobs:
    """Jobs of one run on the cluster, and the files in the run's folder."""

    cluster: Cluster
    run: Path

    def submit(self, recipe, *arguments, **environment):
        """Runs `ufork submit` with additions to its environment; returns the numbers of the jobs."""
        command = [sys.executable, "-m", "pipelines.cli", "submit", str(recipe), *arguments]
        done = subprocess.run(
            command,
            env={**self.cluster.environment, **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [int(line.split()[1].strip(":")) for line in done.stdout.splitlines() if line.startswith("job ")]

    def field(self, job, name):
        shown = self.cluster.run("scontrol", "show", "job", "--oneliner", str(job))
        return dict(field.split("=", 1) for field in shown.split() if "=" in field).get(name)

    def wait(self, what, ready, seconds=RESUMED_WITHIN_SECONDS):
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, f"no {what} after {seconds} s\n{self.logs()}"
            time.sleep(0.2)

    def wait_for_state(self, job, state, restarts=None):
        def reached():
            now = self.field(job, "JobState")
            assert now == state or now not in ENDED, f"job {job}: {now}\n{self.logs()}"
            return now == state and restarts in (None, int(self.field(job, "Restarts")))

        self.wait(f"{state} of job {job}", reached)

    def wait_for_step(self, phase, step):
        """Waits until the current start has reported `step`."""
        metrics = self.run / "phases" / phase / "metrics.jsonl"
        self.wait(f"step {step}", lambda: metrics.exists() and f'"step": {step},' in metrics.read_text())

    def events(self):
        lines = (self.run / "slurm" / "jobs.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def logs(self):
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.run.glob("slurm/logs/*")))


@pytest.fixture
def jobs_of(cluster):
    """Returns a function that makes the `Jobs` of a run's folder; they are cancelled at the end."""
    yield lambda run: Jobs(cluster, run)
    cluster.run("scancel", "--user", "root")
    for node in cluster.nodes:
        if cluster.state(node) not in ("idle", "mixed", "allocated", "completing"):
            cluster.start_node(node)
