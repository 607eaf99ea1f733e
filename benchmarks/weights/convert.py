"""Memory and throughput of `ufork convert qwen`, on a made-up checkpoint of zeros in sparse files.

    python -m benchmarks.weights.convert --folder FOLDER

FOLDER needs room for the weights that are written (24 GB for the 7B shape); the checkpoint itself takes none. One JSON
line: the largest tensor, the highest resident memory of the converting process and its bound; bytes written a second,
and in a second of CPU time; bytes a second at which plain writes reach the same disk.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from ufork.convert.config import BranchingConfig
from ufork.convert.planned_file import file_header
from ufork.convert.qwen import QwenConfig, convert, qwen_shapes
from ufork.convert.tensor_folder import INDEX_NAME, TensorSize
from ufork.data.text_tokenizer import TextTokenizer
from ufork.model.config import Dimensions
from ufork.model.weights import CONFIG_NAME, WeightsConfig

QWEN25_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152_064,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
NUM_SHARDS = 4
BOUND_TENSORS, BOUND_BYTES = 2.5, 500e6
"""Bound of the memory: so many times the largest tensor, and so many bytes."""
DISK_BYTES = 2**30


def main() -> None:
    """Makes the checkpoint, converts it in a process of its own, and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to write (%(default)s)")
    layers = QWEN25_7B["num_hidden_layers"]
    parser.add_argument("--layers", type=int, default=layers, help="layers of the checkpoint (%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as made:
        source = Path(made) / "qwen"
        largest_bytes = make_checkpoint(source, {**QWEN25_7B, "num_hidden_layers": arguments.layers})
        figures = measure(source, Path(made) / "start")
        bound = BOUND_TENSORS * largest_bytes + BOUND_BYTES
        disk = _disk_rate(Path(made) / "zeros")
    print(
        json.dumps(
            {
                "largest_tensor_mb": round(largest_bytes / 1e6),
                "bound_mb": round(bound / 1e6),
                **figures,
                "disk_gb_per_s": round(disk / 1e9, 2),
            }
        )
    )


def make_checkpoint(folder: Path, values: dict) -> int:
    """Writes a checkpoint of zeros that takes no room on the disk; returns the bytes of its largest tensor."""
    folder.mkdir()
    (folder / CONFIG_NAME).write_text(json.dumps(values))
    qwen = QwenConfig.read(folder)
    dimensions = Dimensions(vocab_size=qwen.vocab_size, codebook_size=2, code_width=2, codes_per_position=1)
    shapes = qwen_shapes(qwen, WeightsConfig(model=qwen.model(BranchingConfig()), dimensions=dimensions))
    sizes = {name: TensorSize(shape, torch.bfloat16) for name, shape in shapes.items()}
    files = {name: f"model-{number % NUM_SHARDS}.safetensors" for number, name in enumerate(sizes)}
    for file in set(files.values()):
        header, num_bytes = file_header({name: size for name, size in sizes.items() if files[name] == file})
        with open(folder / file, "wb") as opened:
            opened.write(header)
            opened.truncate(len(header) + num_bytes)
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": files}))
    TextTokenizer.train(["a dog"], vocab_size=300).save(folder)
    return max(size.num_bytes for size in sizes.values())


def measure(source: Path, folder: Path, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Converts in a new process, whose memory nothing else has used; returns its figures."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_convert, source, folder, overrides).result()


def _convert(source: Path, folder: Path, overrides: Sequence[str]) -> dict[str, float]:
    before_mb = _peak_mb()
    started, cpu_started = time.perf_counter(), time.process_time()
    converted = convert(source, folder, overrides)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return {
        "peak_before_mb": before_mb,
        "peak_mb": _peak_mb(),
        "written_gb": round(converted.num_bytes / 1e9, 2),
        "gb_per_s": round(converted.num_bytes / seconds / 1e9, 2),
        "gb_per_cpu_s": round(converted.num_bytes / cpu_seconds / 1e9, 2),
    }


def _peak_mb() -> int:
    """Returns the highest resident memory of this process; getrusage's starts with that of the process before it."""
    status = Path("/proc/self/status").read_text()
    return round(int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6)


def _disk_rate(path: Path) -> float:
    """Returns the bytes a second at which plain writes reach the disk."""
    started = time.perf_counter()
    with open(path, "wb") as file:
        piece = bytes(2**24)
        for _ in range(DISK_BYTES // len(piece)):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return DISK_BYTES / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
