"""Measures filters and fingerprints on one core: `python -m benchmarks.filters`.

Images of 640 x 480 px with coarse random structure are filtered by their header (compared to opening them with Pillow),
filtered by language, decoded, and fingerprinted. Then duplicates are searched among random fingerprints.

The last line is one JSON object: records per second of each, and bytes per record of the search.
"""

import io
import json
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from PIL import Image

from data_prep.filtering.duplicates import FINGERPRINT_DTYPE, DuplicatesConfig, duplicates_of, fingerprint
from data_prep.filtering.filters import FilterConfig, Filters
from data_prep.inputs.record import Record

SIZE = (640, 480)
RECORD = Record(id="one", image=("one",), caption="A man riding a wave on top of a surfboard while the sun sets.")
NUM_FINGERPRINTS = 1_000_000
SECONDS = 0.2
"""Duration of one measurement; the best of three counts."""


def main() -> None:
    """Runs all measurements and prints one line for each."""
    figures: dict[str, float] = {}
    headers, languages = Filters(FilterConfig()), Filters(FilterConfig(languages=("en",)))
    decoding, both = Filters(FilterConfig(check_decode=True)), DuplicatesConfig(exact=True, perceptual=True)
    for format in ("JPEG", "PNG", "WEBP"):
        data = _file(format)
        figures[f"header_{format}"] = _rate(lambda data=data: headers.check(RECORD, data))
        figures[f"pillow_header_{format}"] = _rate(lambda data=data: Image.open(io.BytesIO(data)).close())
        figures[f"decoded_{format}"] = _rate(lambda data=data: decoding.check(RECORD, data))
        figures[f"exact_{format}"] = _rate(lambda data=data: fingerprint(data, "", DuplicatesConfig(exact=True)))
        figures[f"perceptual_{format}"] = _rate(lambda data=data: fingerprint(data, "", both))
    figures["language"] = _rate(lambda: languages.check(RECORD, None))
    for max_distance in range(5):
        figures |= _search(DuplicatesConfig(exact=True, perceptual=True, max_distance=max_distance))
    for name, figure in figures.items():
        print(f"{name:22} {figure:12,.0f}")
    print(json.dumps({name: round(figure) for name, figure in figures.items()}))


def _file(format: str) -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(stream, format)
    return stream.getvalue()


def _search(config: DuplicatesConfig) -> dict[str, float]:
    fingerprints = np.zeros(NUM_FINGERPRINTS, FINGERPRINT_DTYPE)
    rng = np.random.default_rng(0)
    for name in FINGERPRINT_DTYPE.names:
        fingerprints[name] = rng.integers(1, 2**63, NUM_FINGERPRINTS, dtype=np.uint64)
    fingerprints["text"] = 0
    started = time.perf_counter()
    duplicates_of(fingerprints, config)
    seconds = time.perf_counter() - started
    tracemalloc.start()
    duplicates_of(fingerprints, config)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    name = f"search_{config.max_distance}"
    return {name: NUM_FINGERPRINTS / seconds, f"{name}_bytes": peak / NUM_FINGERPRINTS}


def _rate(action: Callable[[], object]) -> float:
    """Calls per second."""
    best = 0.0
    for _ in range(3):
        calls, started = 0, time.perf_counter()
        while time.perf_counter() - started < SECONDS:
            action()
            calls += 1
        best = max(best, calls / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    main()
