"""Speed of reading shards, compared with webdataset and litdata: `python -m benchmarks.stream`.

All readers read the same samples: codes of 256 image positions with captions (decoded to an array and a text), and
photos of 256 px (decoded to pixels). They use two worker processes, batches of 64, files in the page cache, and
shuffled order (except litdata, which is faster in order). ufork also returns the position of its lane with each batch.
Passes of the readers alternate, and medians are compared. litdata is measured if installed (`pip install litdata`); it
reads its own format, not tars.

The last line is one JSON object: codes_samples_per_s, codes_over_webdataset, photos_over_webdataset, and the same
figures of the other readers.
"""

import argparse
import io
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.sharding import CODEBOOK, CODES_SHAPE, PHOTO_PX, WORDS, random_photo
from pipelines.launch.ranks import process_context
from ufork.data.mixture import Mixture
from ufork.data.shards.sample import Sample
from ufork.data.shards.source import ShardSource
from ufork.data.shards.writer import ShardWriter, finish_source, start_source
from ufork.processes.prefetch import prefetch
from ufork.vision.images import decode_image
from ufork.vocabulary import Task

BATCH, WORKERS, LANES = 64, 2, 4


@dataclass(frozen=True)
class Kind:
    """A kind of samples."""

    name: str
    samples: int
    make: Callable[[np.random.Generator], dict[str, Any]]
    """Makes a sample's fields besides the text."""
    array: Callable[[Sample], np.ndarray]
    """Decodes a sample."""


def main() -> None:
    """Runs the benchmark and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--passes", type=int, default=5, help="number of passes of each reader, after one for warming up"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the number of samples")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    for kind in (CODES, PHOTOS):
        with tempfile.TemporaryDirectory() as folder:
            number = int(kind.samples * arguments.scale)
            write_source(Path(folder) / "tars", kind, number)
            rates = measure(Path(folder), kind, number, arguments.passes)
        figures[f"{kind.name}_samples_per_s"] = round(rates["ufork"])
        for name in rates.keys() - {"ufork"}:
            figures[f"{kind.name}_over_{name}"] = round(rates["ufork"] / rates[name], 2)
            figures[f"{kind.name}_{name}_samples_per_s"] = round(rates[name])
    print(json.dumps(figures))


def _codes_of(sample: Sample) -> np.ndarray:
    assert sample.codes is not None
    return sample.codes


def _pixels_of(sample: Sample) -> np.ndarray:
    assert sample.image is not None
    return decode_image(sample.image, size_px=PHOTO_PX, purpose=sample.task)


def _random_codes(random: np.random.Generator) -> dict[str, Any]:
    return {"codes": random.integers(0, CODEBOOK, CODES_SHAPE, dtype=np.uint16)}


def _random_photo(random: np.random.Generator) -> dict[str, Any]:
    return {"image": random_photo(random), "image_format": "jpg"}


CODES = Kind("codes", 40_000, _random_codes, _codes_of)
PHOTOS = Kind("photos", 4_000, _random_photo, _pixels_of)


def write_source(folder: Path, kind: Kind, number: int) -> None:
    """Writes shards of `number` random samples, as `ufork prepare` does."""
    random = np.random.default_rng(0)
    start_source(folder)
    task = Task.GENERATION
    with ShardWriter(folder, source="s", split="train", task=task, shard_samples=number // 8) as writer:
        for index in range(number):
            prompt = " ".join(random.choice(WORDS, 12))
            text = {"id": f"s-train-{index:09d}", "task": task, "source": "s", "licence": "CC0", "prompt": prompt}
            writer.write(Sample(**text, **kind.make(random)))
    values = {"source": "s", "split": "train", "licence": "CC0", "attribution": "", "recipe": "", "details": {}}
    finish_source(folder, **values, entries=writer.entries, skipped={})


def measure(folder: Path, kind: Kind, number: int, passes: int) -> dict[str, float]:
    """Returns the samples per second of each reader: medians of alternating passes."""
    readers: dict[str, Callable[[], Iterable[Any]]] = {
        "ufork": lambda: itertools.islice(ufork_batches(folder / "tars", kind), number // BATCH),
        "webdataset": lambda: webdataset_batches(folder / "tars", kind),
    }
    if find_spec("litdata"):
        write_litdata(folder, kind)
        readers["litdata"] = lambda: litdata_batches(folder / "litdata", kind)
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(passes + 1):
        for name, read in readers.items():
            rates[name].append(_rate(read()))
    for name in rates:
        print(f"{kind.name} {name}: {[round(rate) for rate in rates[name][1:]]} samples/s", file=sys.stderr)
    return {name: statistics.median(rates[name][1:]) for name in rates}


def _rate(batches: Iterable[Any]) -> float:
    """Returns samples per second after the first batch, which excludes starting the processes."""
    iterator = iter(batches)
    next(iterator)
    start, count = time.perf_counter(), 0
    for arrays, texts, *_ in iterator:
        assert len(arrays) == len(texts)
        count += len(texts)
    return count / (time.perf_counter() - start)


def ufork_batches(folder: Path, kind: Kind) -> Iterator[Any]:
    """Yields arrays, texts, and the lane with its position; endless."""
    make, context = partial(_ufork_worker, folder, kind.name), process_context(("benchmarks.stream",))
    return prefetch(make, num_workers=WORKERS, context=context, ahead=4, timeout_seconds=60)


def _ufork_worker(folder: Path, kind_name: str, worker: int, num_workers: int) -> Iterator[Any]:
    kind = {kind.name: kind for kind in (CODES, PHOTOS)}[kind_name]
    mixture = Mixture([ShardSource(folder, Task.GENERATION)], [1.0], num_lanes=LANES, seed=0)
    counts = {lane: [0] for lane in range(worker, LANES, num_workers)}
    for lane in itertools.cycle(counts):
        samples = [s for s in mixture.read(mixture.draws(lane, counts[lane], BATCH)) if isinstance(s, Sample)]
        counts[lane][0] += BATCH
        arrays = np.stack([kind.array(sample) for sample in samples])
        yield arrays, [sample.prompt for sample in samples], lane, list(counts[lane])


def webdataset_batches(folder: Path, kind: Kind) -> Iterable[Any]:
    """Yields one pass, decoded by webdataset."""
    import webdataset

    urls = sorted(str(path) for path in folder.glob("*.tar"))
    decoded = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False).shuffle(1000)
    name, decoders = ("codes.npy", ()) if kind is CODES else ("jpg", ("rgb8",))
    batches = decoded.decode(*decoders).to_tuple(name, "json").map_tuple(_same, _prompt_of).batched(BATCH)
    return webdataset.WebLoader(batches, batch_size=None, num_workers=WORKERS)


def _same(value: Any) -> Any:
    return value


def _prompt_of(fields: dict[str, Any]) -> str:
    return fields["prompt"]


def write_litdata(folder: Path, kind: Kind) -> None:
    """Writes the same samples in litdata's format."""
    import litdata

    source = ShardSource(folder / "tars", Task.GENERATION)
    shutil.rmtree(folder / "litdata", ignore_errors=True)
    litdata.optimize(
        fn=partial(_litdata_fields, source, kind is CODES),
        inputs=list(range(len(source))),
        output_dir=str(folder / "litdata"),
        num_workers=1,
        chunk_bytes="64MB",
    )


def _litdata_fields(source: ShardSource, has_codes: bool, number: int) -> dict[str, Any]:
    sample = source[number]
    data = sample.codes.tobytes() if has_codes and sample.codes is not None else sample.image  # its fastest form
    return {"data": data, "prompt": sample.prompt}


def litdata_batches(folder: Path, kind: Kind) -> Iterable[Any]:
    """Yields one pass in the order of the chunks, which is twice as fast as shuffled."""
    import litdata

    collate = _codes_batch if kind is CODES else _photo_batch
    dataset = litdata.StreamingDataset(str(folder), shuffle=False)
    return litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate)


def _codes_batch(samples: list[dict[str, Any]]) -> tuple[np.ndarray, list[str]]:
    codes = [np.frombuffer(sample["data"], np.uint16).reshape(CODES_SHAPE) for sample in samples]
    return np.stack(codes), [sample["prompt"] for sample in samples]


def _photo_batch(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, list[str]]:
    pixels = [np.array(Image.open(io.BytesIO(sample["data"])).convert("RGB")) for sample in samples]
    return torch.from_numpy(np.stack(pixels)), [sample["prompt"] for sample in samples]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
