"""Measures the speed of drawing on this machine: `python -m benchmarks.generate`.

Reports image positions drawn per second, with guidance, by batch size; all codes of a position count as one. The last
line is one JSON object.
"""

import argparse
import json
import statistics
import time

import torch

from benchmarks.train_step import DIMENSIONS, MODEL
from ufork.data.text_tokenizer import TextTokenizer
from ufork.infer.config import DrawConfig
from ufork.infer.draw import draw_codes
from ufork.model.initialization import initialize
from ufork.model.unifork import UniFork

BATCHES = (1, 8)
NUM_POSITIONS = 64
REPEATS = 5


def main() -> None:
    """Measures each batch size several times and reports the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    model = UniFork(MODEL, DIMENSIONS).eval()
    initialize(model, 0)
    tokenizer = TextTokenizer.train(["a red dog left of a cat"], vocab_size=300)
    rates = {str(batch): round(_positions_per_s(model, tokenizer, batch), 1) for batch in BATCHES}
    print(json.dumps({"positions_per_s": rates, "guidance": DrawConfig().guidance}))


def _positions_per_s(model: UniFork, tokenizer: TextTokenizer, batch: int) -> float:
    prompts = ["a red dog left of a cat"] * batch
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        draw_codes(model, tokenizer, prompts, DrawConfig(), num_positions=NUM_POSITIONS, seeds=range(batch))
        seconds.append(time.perf_counter() - start)
    return batch * NUM_POSITIONS / statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
