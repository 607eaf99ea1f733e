"""Speed of writing shards, compared with webdataset's ShardWriter and tarfile: `python -m benchmarks.sharding`.

All writers write the same samples into tars of 2,500: photos (JPEG files of 256 px, copied unchanged) with captions,
and codes of 256 image positions with captions. For ufork all steps are timed: starting two processes, record index,
shuffle, indices, checksums and manifest. The other two run in one process and write in the order of the input.
img2dataset runs one ShardWriter per process, so `over_shardwriter_per_cpu` compares the CPU time per sample, which
other programs on the machine hardly influence. Passes of the writers alternate, and medians are compared. Then the peak
memory of all of ufork's processes is measured for a million texts, and for a tenth of them.

The last line is one JSON object: over_shardwriter, over_shardwriter_per_cpu, over_tarfile, samples_per_s and
cpu_us_per_sample (each for photos and codes), peak_memory_mb (of a million texts) and peak_memory_tenth_mb.
"""

import argparse
import io
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from data_prep.inputs.record import Record
from data_prep.sharding.config import ShardConfig
from data_prep.sharding.merge import merge_shards
from data_prep.sharding.run import make_record_index, write_shards
from ufork.config import Config

SHARD_SAMPLES, WORKERS = 2500, 2
WORDS = "a red dog left of two yellow buses on a blue background beside the old tree".split()
CODES_SHAPE, CODEBOOK, PHOTO_PX, NUM_PICTURES = (16, 16, 4), 4096, 256, 200
NUM_TEXTS, TEXTS_PER_SHARD = 1_000_000, 10_000
PAGE_BYTES, POLL_SECONDS = os.sysconf("SC_PAGE_SIZE"), 0.02


class BenchmarkConfig(Config):
    """Collection of the benchmark."""

    kind: Literal["photos", "codes", "texts"]
    folder: str
    size: int


class BenchmarkShardConfig(ShardConfig):
    """Configuration of shards of the benchmark's collection."""

    input: BenchmarkConfig


class BenchmarkInput:
    """Photos as files or codes as one array, with captions; or generated texts."""

    def __init__(self, config: BenchmarkConfig) -> None:
        """Opens the files that `write_input` wrote."""
        self.config, self.folder = config, config.folder
        if config.kind == "codes":
            self.codes = np.load(f"{self.folder}/codes.npy", mmap_mode="r")

    def records(self) -> Iterator[Record]:
        """Yields a record per caption, or per text."""
        if self.config.kind == "texts":
            for number in range(self.config.size):
                yield Record(id=str(number), turns=((f"what is {number}?", "a number"),))
            return
        with open(f"{self.folder}/captions.txt", encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                yield Record(id=str(number), image=(number,), caption=line[:-1])

    def image(self, record: Record) -> bytes:
        """Returns the photo's file, or the codes as a .npy file."""
        assert record.image is not None
        (number,) = record.image
        return photo(self.folder, int(number)) if self.config.kind == "photos" else npy(self.codes[number])


def main() -> None:
    """Runs the benchmark and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=3, help="number of passes of each writer")
    parser.add_argument("--photos", type=int, default=60_000, help="number of photos")
    parser.add_argument("--codes", type=int, default=200_000, help="number of samples with codes")
    parser.add_argument("--texts", type=int, default=NUM_TEXTS, help="number of texts to measure the peak memory with")
    parser.add_argument("--folder", type=Path, help="folder for temporary files (default: /dev/shm if it exists)")
    parser.add_argument("--shard-texts", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.shard_texts:
        shard_with_ufork("texts", arguments.shard_texts, arguments.texts, shard_samples=TEXTS_PER_SHARD)
        return
    memory = Path("/dev/shm")
    parent = arguments.folder or (memory if memory.is_dir() else None)
    figures: dict[str, Any] = {}
    for kind, size in (("photos", arguments.photos), ("codes", arguments.codes)):
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            write_input(kind, Path(folder), size)
            for figure, value in measure(kind, Path(folder), size, arguments.passes).items():
                figures.setdefault(figure, {})[kind] = value
    for name, size in (("peak_memory_tenth_mb", arguments.texts // 10), ("peak_memory_mb", arguments.texts)):
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            figures[name] = round(peak_memory_mb(Path(folder), size))
    print(json.dumps(figures))


def write_input(kind: str, folder: Path, size: int) -> None:
    """Writes captions, and photos or codes."""
    random = np.random.default_rng(0)
    lines = [" ".join(words) + "\n" for words in random.choice(WORDS, (size, 12))]
    (folder / "captions.txt").write_text("".join(lines), encoding="utf-8")
    if kind == "codes":
        np.save(folder / "codes.npy", random.integers(0, CODEBOOK, (size, *CODES_SHAPE), dtype=np.uint16))
        return
    pictures = [random_photo(random) for _ in range(NUM_PICTURES)]
    for number in range(size):
        (folder / f"{number}.jpg").write_bytes(pictures[number % NUM_PICTURES])


def random_photo(random: np.random.Generator) -> bytes:
    """Returns a JPEG with coarse and fine structure, about as large as a real photo's."""
    coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((PHOTO_PX, PHOTO_PX))
    pixels = np.array(coarse, np.int16) + random.integers(-20, 21, (PHOTO_PX, PHOTO_PX, 1), dtype=np.int16)
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def photo(folder: str, number: int) -> bytes:
    """Returns the contents of a photo's file."""
    descriptor = os.open(f"{folder}/{number}.jpg", os.O_RDONLY)
    try:
        return os.read(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def npy(codes: np.ndarray) -> bytes:
    """Returns codes as a .npy file."""
    return _npy_header() + codes.tobytes()


@cache
def _npy_header() -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<u2", "fortran_order": False, "shape": CODES_SHAPE})
    return stream.getvalue()


def measure(kind: str, folder: Path, size: int, passes: int) -> dict[str, Any]:
    """Returns the figures of one kind of samples: medians of alternating passes."""
    writers: dict[str, Callable[[], None]] = {
        "ufork": lambda: shard_with_ufork(kind, folder, size),
        "shardwriter": lambda: write_with_shardwriter(kind, folder),
        "tarfile": lambda: write_with_tarfile(kind, folder),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in writers}
    for _ in range(passes):
        for name, write in writers.items():
            (folder / "out").mkdir()
            start, start_cpu = time.perf_counter(), cpu_seconds()
            write()
            seconds[name].append((time.perf_counter() - start, cpu_seconds() - start_cpu))
            shutil.rmtree(folder / "out")
    for name, values in seconds.items():
        print(f"{kind} {name}: {[round(size / wall) for wall, _ in values]} samples/s", file=sys.stderr)
    walls, cpus = (
        {name: statistics.median(value[clock] for value in values) for name, values in seconds.items()}
        for clock in (0, 1)
    )
    return {
        "samples_per_s": {name: round(size / wall) for name, wall in walls.items()},
        "cpu_us_per_sample": {name: round(1e6 * cpu / size, 1) for name, cpu in cpus.items()},
        "over_shardwriter": round(walls["shardwriter"] / walls["ufork"], 2),
        "over_shardwriter_per_cpu": round(cpus["shardwriter"] / cpus["ufork"], 2),
        "over_tarfile": round(walls["tarfile"] / walls["ufork"], 2),
    }


def cpu_seconds() -> float:
    """Returns the CPU time of this process and its finished child processes."""
    return sum(os.times()[:4])


def shard_with_ufork(kind: str, folder: Path, size: int, shard_samples: int = SHARD_SAMPLES) -> None:
    """Runs all steps except drawing the report, which takes about a second for any size."""
    config = BenchmarkShardConfig.from_mapping(
        {
            "input": {"kind": kind, "folder": str(folder), "size": size},
            "source": "benchmark",
            "shard_samples": shard_samples,
            "num_workers": WORKERS,
            "samples": {"tasks": ["understanding" if kind == "texts" else "generation"]},
        },
        origin="benchmark",
    )
    target, open_input = folder / "out", partial(BenchmarkInput, config.input)
    make_record_index(config, target, open_input)
    write_shards(config, target, open_input)
    manifest = merge_shards(config, target)
    assert sum(entry.samples for entry in manifest.shards) == size


def plain_samples(kind: str, folder: Path) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Yields key, fields of the JSON, and the photo's bytes or the array of codes."""
    codes = np.load(folder / "codes.npy", mmap_mode="r") if kind == "codes" else None
    with open(folder / "captions.txt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            fields = {"id": str(number), "task": "generation", "source": "s", "licence": "", "prompt": line[:-1]}
            yield f"{number:09d}", fields, photo(str(folder), number) if codes is None else codes[number]


def write_with_shardwriter(kind: str, folder: Path) -> None:
    """Writes with webdataset, as img2dataset does in each of its processes."""
    from webdataset import ShardWriter

    name = "jpg" if kind == "photos" else "codes.npy"
    with ShardWriter(f"{folder}/out/%05d.tar", maxcount=SHARD_SAMPLES, verbose=0) as writer:
        for key, fields, data in plain_samples(kind, folder):
            writer.write({"__key__": key, "json": fields, name: data})


def write_with_tarfile(kind: str, folder: Path) -> None:
    """Writes with Python's tarfile, in the format with the smallest headers."""
    name = "jpg" if kind == "photos" else "codes.npy"
    tar = None
    for number, (key, fields, data) in enumerate(plain_samples(kind, folder)):
        if number % SHARD_SAMPLES == 0:
            if tar:
                tar.close()
            tar = tarfile.open(folder / "out" / f"{number}.tar", "w", format=tarfile.USTAR_FORMAT)
        assert tar is not None
        for extension, contents in (("json", json.dumps(fields).encode()), (name, data)):
            contents = contents if isinstance(contents, bytes) else npy(contents)
            member = tarfile.TarInfo(f"{key}.{extension}")
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
    if tar:
        tar.close()


def peak_memory_mb(folder: Path, size: int) -> float:
    """Returns the peak memory of all processes together while sharding `size` texts."""
    command = [sys.executable, "-m", "benchmarks.sharding", "--texts", str(size), "--shard-texts", str(folder)]
    peak, start = 0, time.perf_counter()
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, _resident_bytes(process.pid))
            time.sleep(POLL_SECONDS)
    assert process.returncode == 0
    print(f"{size} texts: {peak / 1e6:.0f} MB, {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return peak / 1e6


def _resident_bytes(pid: int) -> int:
    """Returns the resident memory of a process and its descendants; 0 if it has ended."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0
    return own + sum(map(_resident_bytes, map(int, children)))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main()
