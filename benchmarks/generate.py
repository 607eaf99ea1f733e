"""Measures the speed of drawing and answering on this machine: `python -m benchmarks.generate --preset reference`.

Reports, by the way in which steps are run (`ufork/infer/steps.py`), image positions drawn per second with guidance, by
batch size (all codes of a position count as one), and text tokens per second of one answer; prompts count in the time.
It also counts what the host launches per position at the released model's depth. On a CPU these are the operators that
would be kernels on a GPU. With `--requests N` it compares continuous batching of N requests with one after the other
instead, and the time until each gives its first position or token with the same request's alone
(`benchmarks/mixed_requests.py`). The last line is one JSON object.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.gpu_check.launches import count_launches
from benchmarks.workloads.presets import PRESETS
from benchmarks.workloads.unending_tokenizer import UnendingTokenizer
from ufork.data.text_tokenizer import TextTokenizer
from ufork.infer.answer import answer_questions
from ufork.infer.config import AnswerConfig, DrawConfig
from ufork.infer.device import choose_device, choose_dtype
from ufork.infer.draw import draw_codes
from ufork.infer.fused import can_fuse, fuse_products
from ufork.infer.steps import FEWEST_REPLAYS, WARM_UP_STEPS, EagerSteps, GraphSteps, Steps
from ufork.model.config import Dimensions, ModelConfig, RqHeadConfig
from ufork.model.initialization import initialize
from ufork.model.layers.attention import choose_attention_kernel
from ufork.model.unifork import UniFork

BATCHES, CUDA_BATCHES = (1, 8), (1, 16, 64)
NUM_POSITIONS = 64
REPEATS = 5
NUM_TOKENS = 64
PROMPT = "a red dog left of a cat"
QUESTION = "how many red apples are there?"
COUNTED_POSITIONS = 8
"""Positions by which two drawings differ, to count the launches of the later ones without prompts and captures."""

_NARROW_HEAD = RqHeadConfig(hidden_size=32, attention_size=32, num_attention_heads=4)
RELEASED_DEPTH = ModelConfig(hidden_size=112, intermediate_size=112, rq_head=_NARROW_HEAD)
"""As many layers and blocks as the released model, and narrow: the number of launches depends on these alone."""


def main() -> None:
    """Measures each batch size several times and reports the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", choices=PRESETS, default="default", help="model (benchmarks/workloads/presets.py)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--requests", type=int, help="compare an engine with one after the other, of so many requests")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    dtype = choose_dtype(device, arguments.precision)
    preset = PRESETS[arguments.preset]
    model = _random_model(preset.model, preset.dimensions, device, dtype)
    if can_fuse(device, dtype):
        fuse_products(model)
    setting = {"preset": arguments.preset, "device": str(device), "precision": str(dtype)}
    if arguments.requests:
        from benchmarks.mixed_requests import compare, with_tokenizers  # needs packages that drawing alone does not

        print(json.dumps(setting | compare(with_tokenizers(model), arguments.requests)))
        return
    deep = _random_model(RELEASED_DEPTH, PRESETS["default"].dimensions, device, dtype)
    tokenizer = TextTokenizer.train([PROMPT], vocab_size=300)
    batches = CUDA_BATCHES if device.type == "cuda" else BATCHES
    drawing, answering, launches = {}, {}, {}
    for name, steps in ways_on(device).items():
        drawing[name] = {str(batch): positions_per_second(model, tokenizer, batch, steps=steps) for batch in batches}
        answering[name] = tokens_per_second(model, tokenizer, steps=steps)
        launches[name] = launches_per_position(deep, tokenizer, batches[-1], steps)
    figures = {
        "positions_per_s": drawing,
        "text_tokens_per_s": answering,
        "launches_per_position": launches,
        "guidance": DrawConfig().guidance,
    }
    print(json.dumps(setting | figures))


def _random_model(config: ModelConfig, dimensions: Dimensions, device: torch.device, dtype: torch.dtype) -> UniFork:
    model = UniFork(config, dimensions, choose_attention_kernel(device, dtype)).eval()
    initialize(model, 0)
    return model.to(device, dtype)


def ways_on(device: torch.device) -> dict[str, Steps]:
    """Returns the ways in which steps can be run on `device`."""
    graph: dict[str, Steps] = {"graph": GraphSteps(device)} if device.type == "cuda" else {}
    return {"growing": EagerSteps(), "static": EagerSteps(is_static=True), **graph}


def launches_per_position(model: UniFork, tokenizer: TextTokenizer, batch: int, steps: Steps) -> float:
    """Returns the launches of one more position of a drawing of `batch` prompts (`count_launches`)."""
    device = model.trunk.token_embedding.weight.device
    fewest = 1 + WARM_UP_STEPS + FEWEST_REPLAYS

    def draw(num_positions: int) -> None:
        prompts, config = [PROMPT] * batch, DrawConfig()
        draw_codes(model, tokenizer, prompts, config, num_positions=num_positions, seeds=range(batch), steps=steps)

    draw(fewest)  # whose launches include what libraries do once
    few = count_launches(lambda: draw(fewest), device)
    many = count_launches(lambda: draw(fewest + COUNTED_POSITIONS), device)
    return (many - few) / COUNTED_POSITIONS


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

    def draw() -> None:
        codes_BNC = draw_codes(
            model, tokenizer, prompts, config, num_positions=num_positions, seeds=range(batch), steps=steps
        )
        codes_BNC.cpu()  # waits for the device

    return round(batch * num_positions / _median_seconds(draw, repeats), 1)


def tokens_per_second(model: UniFork, tokenizer: TextTokenizer, *, steps: Steps | None = None) -> float:
    """Returns the text tokens decoded per second for one image and question; the answer does not end early."""
    codes_BYXC = np.zeros((1, 8, 8, model.dimensions.codes_per_position), np.uint16)
    unending = UnendingTokenizer(tokenizer)

    def answer() -> None:
        config = AnswerConfig(max_tokens=NUM_TOKENS)
        answer_questions(model, unending, codes_BYXC, [QUESTION], config, seeds=[0], steps=steps)  # type: ignore[arg-type]

    return round(NUM_TOKENS / _median_seconds(answer, REPEATS), 1)


def _median_seconds(run: Callable[[], None], repeats: int) -> float:
    """Returns the median time of `repeats` runs, after one more."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
