"""Training where a machine gives little: no home, user name, temporary folder, network, shared memory or open files."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.failing_calls import ROOT, build
from tests.tiny_run import make_run

LOOPBACK_UP = (
    "import fcntl, socket, struct;"
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh', b'lo', 0x41))"  # SIOCSIFFLAGS, IFF_UP and IFF_RUNNING
)
SURROUNDINGS = f"""
{sys.executable} -c "{LOOPBACK_UP}"
mount -t tmpfs -o size=4k none /dev/shm
ulimit -n 64
umask 077
exec "$@" <&- >&-
"""
UNSHARE = ["unshare", "--user", "--map-user=12345", "--map-group=12345", "--keep-caps", "--net", "--mount"]
BARE = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": str(ROOT),
    "CUDA_VISIBLE_DEVICES": "",
    "TMPDIR": "/nowhere",
    "LC_ALL": "C",
    "PYTHONOPTIMIZE": "2",
    "OMP_NUM_THREADS": "1",
    "http_proxy": "http://127.0.0.1:9",
}


@pytest.mark.slow
def test_training_needs_little_of_a_machine(tmp_path):
    if shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"], check=False).returncode:
        pytest.skip("needs unshare, and the right to use it")
    recipe, run = make_run(tmp_path, "run")
    values = ["--ranks", "2", "--phase", "align", "data.num_workers=1", "train.wandb.mode=offline"]
    command = [sys.executable, "-m", "pipelines.cli", "train", recipe, *values]
    shell = ["bash", "-c", SURROUNDINGS, "bash"]
    done = subprocess.run([*UNSHARE, *shell, *command], env=BARE, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    weights = run.phase("align").weights / "model.safetensors"
    assert weights.stat().st_mode & 0o777 == 0o600, "as the umask says"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [-3600, 365 * 24 * 3600])
def test_a_clock_that_jumps_changes_nothing(tmp_path, seconds):
    recipe, run = make_run(tmp_path, "run")
    command = [sys.executable, "-m", "pipelines.cli", "train", recipe, "--phase", "align", "train.timeout_seconds=60"]
    jumping = build(tmp_path).environment(CLOCK_AFTER=5, CLOCK_BY=seconds)
    done = subprocess.run(command, env=jumping, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    entries = [json.loads(line) for line in run.phase("align").metrics.read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    assert 0 < entries[0]["seconds"] < entries[-1]["seconds"] < 600
