"""Samples per second into shards, beside webdataset's ShardWriter and plain tarfile: `python -m benchmarks.sharding`.

The same for all: photos (JPEG files of 256 px, taken over as they are) with a caption, and codes of 256 image
positions with one, into tars of 2,500 samples. ufork's whole way is timed, from starting two processes, over record
index and shuffle, to index, checksums and manifest; the others write in the order that they read, from one process as
they come (img2dataset runs one ShardWriter in each of its processes: `over_shardwriter_per_cpu` compares the
processor time of a sample, which other programs on the machine hardly change). Passes take turns, and medians are
compared. Then the peak memory of all of ufork's processes is taken over a million rows of text, and over a tenth of
them.

The last line is one JSON object: over_shardwriter, over_shardwriter_per_cpu, over_tarfile, samples_per_s and
cpu_us_per_sample (each for photos and codes), peak_memory_mb (of a million rows) and peak_memory_tenth_mb.
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
MANY_ROWS, ROWS_PER_SHARD = 1_000_000, 10_000
PAGE_BYTES, SECONDS_BETWEEN_LOOKS = os.sysconf("SC_PAGE_SIZE"), 0.02


class BenchmarkConfig(Config):
    """What is read."""

    kind: Literal["photos", "codes", "rows"]
    folder: str
    size: int


class BenchmarkShardConfig(ShardConfig):
    """As a user's, of what is made up here."""

    input: BenchmarkConfig


class BenchmarkInput:
    """Photos as files with a table of captions, codes as one array with the same, or rows of text that are made up."""

    def __init__(self, config: BenchmarkConfig) -> None:
        """Opens what was written before."""
        self.config, self.folder = config, config.folder
        if config.kind == "codes":
            self.codes = np.load(f"{self.folder}/codes.npy", mmap_mode="r")

    def records(self) -> Iterator[Record]:
        """Of each line, or each number."""
        if self.config.kind == "rows":
            for number in range(self.config.size):
                yield Record(id=str(number), turns=((f"what is {number}?", "a number"),))
            return
        with open(f"{self.folder}/captions.txt", encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                yield Record(id=str(number), image=(number,), caption=line[:-1])

    def image(self, record: Record) -> bytes:
        """The file, or the row as a file of its own."""
        assert record.image is not None
        (number,) = record.image
        return photo(self.folder, int(number)) if self.config.kind == "photos" else npy(self.codes[number])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=3, help="of each writer")
    parser.add_argument("--photos", type=int, default=60_000, help="how many")
    parser.add_argument("--codes", type=int, default=200_000, help="how many")
    parser.add_argument("--rows", type=int, default=MANY_ROWS, help="of text, for the peak memory")
    parser.add_argument("--folder", type=Path, help="of the temporary files; the system's memory where it has some")
    parser.add_argument("--shard-rows", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.shard_rows:
        shard_with_ufork("rows", arguments.shard_rows, arguments.rows, shard_samples=ROWS_PER_SHARD)
        return
    memory = Path("/dev/shm")
    parent = arguments.folder or (memory if memory.is_dir() else None)
    figures: dict[str, Any] = {}
    for kind, size in (("photos", arguments.photos), ("codes", arguments.codes)):
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            write_input(kind, Path(folder), size)
            for figure, value in measure(kind, Path(folder), size, arguments.passes).items():
                figures.setdefault(figure, {})[kind] = value
    for name, rows in (("peak_memory_tenth_mb", arguments.rows // 10), ("peak_memory_mb", arguments.rows)):
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            figures[name] = round(peak_memory_mb(Path(folder), rows))
    print(json.dumps(figures))


def write_input(kind: str, folder: Path, size: int) -> None:
    """What is read: captions, and photos or codes."""
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
    """Coarse and fine structure, so that the file is about as large as a photo's."""
    coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((PHOTO_PX, PHOTO_PX))
    pixels = np.array(coarse, np.int16) + random.integers(-20, 21, (PHOTO_PX, PHOTO_PX, 1), dtype=np.int16)
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def photo(folder: str, number: int) -> bytes:
    """One file's contents."""
    descriptor = os.open(f"{folder}/{number}.jpg", os.O_RDONLY)
    try:
        return os.read(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def npy(codes: np.ndarray) -> bytes:
    """As a file."""
    return _npy_header() + codes.tobytes()


@cache
def _npy_header() -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<u2", "fortran_order": False, "shape": CODES_SHAPE})
    return stream.getvalue()


def measure(kind: str, folder: Path, size: int, passes: int) -> dict[str, Any]:
    """Figures of one kind: medians of passes in turn."""
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
        {name: statistics.median(value[place] for value in values) for name, values in seconds.items()}
        for place in (0, 1)
    )
    return {
        "samples_per_s": {name: round(size / wall) for name, wall in walls.items()},
        "cpu_us_per_sample": {name: round(1e6 * cpu / size, 1) for name, cpu in cpus.items()},
        "over_shardwriter": round(walls["shardwriter"] / walls["ufork"], 2),
        "over_shardwriter_per_cpu": round(cpus["shardwriter"] / cpus["ufork"], 2),
        "over_tarfile": round(walls["tarfile"] / walls["ufork"], 2),
    }


def cpu_seconds() -> float:
    """Of this process and those that it has started and seen end."""
    return sum(os.times()[:4])


def shard_with_ufork(kind: str, folder: Path, size: int, shard_samples: int = SHARD_SAMPLES) -> None:
    """All of it but the page and the contact sheet, which take about a second whatever the size."""
    config = BenchmarkShardConfig.from_mapping(
        {
            "input": {"kind": kind, "folder": str(folder), "size": size},
            "source": "benchmark",
            "shard_samples": shard_samples,
            "num_workers": WORKERS,
            "samples": {"tasks": ["understanding" if kind == "rows" else "generation"]},
        },
        origin="benchmark",
    )
    target, open_input = folder / "out", partial(BenchmarkInput, config.input)
    make_record_index(config, target, open_input)
    write_shards(config, target, open_input)
    manifest = merge_shards(config, target)
    assert sum(entry.samples for entry in manifest.shards) == size


def plain_samples(kind: str, folder: Path) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Key, fields of the JSON, and the photo's bytes or the codes' array."""
    codes = np.load(folder / "codes.npy", mmap_mode="r") if kind == "codes" else None
    with open(folder / "captions.txt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            fields = {"id": str(number), "task": "generation", "source": "s", "licence": "", "prompt": line[:-1]}
            yield f"{number:09d}", fields, photo(str(folder), number) if codes is None else codes[number]


def write_with_shardwriter(kind: str, folder: Path) -> None:
    """As img2dataset does in each of its processes."""
    from webdataset import ShardWriter

    name = "jpg" if kind == "photos" else "codes.npy"
    with ShardWriter(f"{folder}/out/%05d.tar", maxcount=SHARD_SAMPLES, verbose=0) as writer:
        for key, fields, data in plain_samples(kind, folder):
            writer.write({"__key__": key, "json": fields, name: data})


def write_with_tarfile(kind: str, folder: Path) -> None:
    """Python's own, with the plainest headers."""
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


def peak_memory_mb(folder: Path, rows: int) -> float:
    """Of all processes together while so many rows become shards."""
    command = [sys.executable, "-m", "benchmarks.sharding", "--rows", str(rows), "--shard-rows", str(folder)]
    peak, start = 0, time.perf_counter()
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, _resident_bytes(process.pid))
            time.sleep(SECONDS_BETWEEN_LOOKS)
    assert process.returncode == 0
    print(f"{rows} rows: {peak / 1e6:.0f} MB, {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return peak / 1e6


def _resident_bytes(pid: int) -> int:
    """Of a process and all that it started; 0 once it has ended."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0
    return own + sum(map(_resident_bytes, map(int, children)))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main()
