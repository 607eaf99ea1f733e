"""slurm/prep.sbatch: four jobs, two of them arrays, leave the shards that one process makes."""

import hashlib
import random
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipelines import cli

ROOT = Path(__file__).parent.parent.parent
SCRIPT = str(ROOT / "slurm" / "prep.sbatch")
VALUES = ("source=pets", "licence=CC0-1.0", "shard_samples=4")


@pytest.fixture
def images(tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for number in range(12):
            noise = random.Random(f"{kind}{number}").randbytes(48 * 48 * 3)
            Image.frombytes("RGB", (48, 48), noise).save(tmp_path / "images" / kind / f"{number}.png")
    return tmp_path / "images"


def checksums(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}


@pytest.mark.slow
def test_arrays_fingerprint_and_write_and_a_last_job_merges(tmp_path, images, cluster, jobs_of):
    jobs, target = jobs_of(tmp_path), str(tmp_path / "array")
    environment = f"--export=ALL,UFORK_PYTHON={sys.executable},PYTHONPATH={ROOT}"

    def queue(*arguments):
        options = ("--parsable", "--kill-on-invalid-dep=yes", f"--output={tmp_path}/%A-%a.log", environment)
        return cluster.run("sbatch", *options, *arguments)

    record_index = queue(SCRIPT, "images", str(images), "--to", target, *VALUES, "--step", "record_index")
    fingerprints = queue(
        f"--dependency=afterok:{record_index}", "--array=3-5", SCRIPT, "write", target, "--step", "fingerprints"
    )
    write = queue(f"--dependency=afterok:{fingerprints}", "--array=3-5", SCRIPT, "write", target)
    merge = queue(f"--dependency=afterok:{write}", SCRIPT, "merge", target)
    jobs.wait_for_state(merge, "COMPLETED")
    assert cli.main(["shard", "images", str(images), "--to", str(tmp_path / "one"), *VALUES]) == 0
    assert checksums(tmp_path / "array") == checksums(tmp_path / "one") != {}
    assert cli.main(["shard", "verify", target]) == 0
