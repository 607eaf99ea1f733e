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
from ufork.infer.steps import Steps
from ufork.model.initialization import initialize
from ufork.model.unifork import UniFork

BATCHES = (1, 8)
NUM_POSITIONS = 64
REPEATS = 5
PROMPT = "a red dog left of a cat"


def main() -> None:
    """Measures each batch size several times and reports the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    model = UniFork(MODEL, DIMENSIONS).eval()
    initialize(model, 0)
    tokenizer = TextTokenizer.train([PROMPT], vocab_size=300)
    rates = {str(batch): round(positions_per_second(model, tokenizer, batch), 1) for batch in BATCHES}
    print(json.dumps({"positions_per_s": rates, "guidance": DrawConfig().guidance}))


def positions_per_second(
    model: UniFork,
    tokenizer: TextTokenizer,
    batch: int,
    *,
    num_positions: int = NUM_POSITIONS,
    repeats: int = REPEATS,
    steps: Steps | None = None,
) -> float:
    """Returns the image positions drawn per second, on the model's device, over all prompts of a batch.

    Args:
        model: with a generation branch.
        tokenizer: of any kind, for the prompts.
        batch: number of prompts.
        num_positions: positions of an image.
        repeats: drawings that the median is taken of, after one more.
        steps: as `draw_codes`.
    """
    prompts, config = [PROMPT] * batch, DrawConfig()
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        draw_codes(
            model, tokenizer, prompts, config, num_positions=num_positions, seeds=range(batch), steps=steps
        ).cpu()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return batch * num_positions / statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
