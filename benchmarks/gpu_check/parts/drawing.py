"""Speed of drawing at the released size in bf16, with guidance: steps launched kernel by kernel, or as one graph."""

from functools import partial

import torch

from benchmarks.generate import PROMPT, launches_per_position, positions_per_second, ways_on
from benchmarks.gpu_check.measuring import device_of, half_precision
from benchmarks.gpu_check.profiling import profiled
from benchmarks.gpu_check.released_model import released_sizes
from benchmarks.gpu_check.report import Report
from ufork.data.text_tokenizer import TextTokenizer
from ufork.infer.config import DrawConfig
from ufork.infer.draw import draw_codes
from ufork.infer.steps import FEWEST_REPLAYS, WARM_UP_STEPS, GraphSteps, Steps
from ufork.model.kernels import choose_kernels, use_kernels
from ufork.model.layers.attention import choose_attention_kernel
from ufork.model.unifork import UniFork
from ufork.model.weights import WeightsConfig, allocate_model
from ufork.vocabulary import Task

BATCHES, CPU_BATCHES = (1, 16, 64), (1, 2)
PROFILED_BATCH = {False: 16, True: 2}
NUM_POSITIONS, CPU_NUM_POSITIONS = 32, 4
PROFILED_POSITIONS = 1 + WARM_UP_STEPS + FEWEST_REPLAYS
"""The fewest that are replayed as a graph: a profile of more takes longer to read than to record."""
REPEATS = {"growing": 1, "static": 1, "graph": 3}
"""Measured drawings; those whose kernels are launched one by one take seconds each."""
STANDARD_DEVIATION = 0.02
GOAL_FEWER_LAUNCHES = 10.0
LEAST_EQUAL_IMAGES = 0.5
"""Share of the images that have to be equal in all codes. A product that a library sums in another order in a graph
could change a code, and with it all that follow in its image."""


def run(report: Report, *, cpu: bool) -> None:
    """Fails if a graph draws other codes than single launches."""
    device = device_of(cpu=cpu)
    model = _random_model(device, cpu=cpu)
    tokenizer = TextTokenizer.train([PROMPT], vocab_size=300)
    num_positions = CPU_NUM_POSITIONS if cpu else NUM_POSITIONS
    if cpu:
        report.skip("graph", "needs CUDA")
    batch = PROFILED_BATCH[cpu]
    codes, launches = {}, {}

    def draw(steps: Steps, num_positions: int) -> torch.Tensor:
        return draw_codes(
            model,
            tokenizer,
            [PROMPT] * batch,
            DrawConfig(),
            num_positions=num_positions,
            seeds=range(batch),
            steps=steps,
        ).cpu()

    batches = CPU_BATCHES if cpu else BATCHES
    for name, steps in reversed(ways_on(device).items()):  # graphs first, in case time runs out
        rates = {
            str(each): round(
                positions_per_second(
                    model, tokenizer, each, num_positions=num_positions, repeats=REPEATS[name], steps=steps
                ),
                1,
            )
            for each in (batches if name != "static" else [batch])
        }
        codes[name] = draw(steps, num_positions)
        found = profiled(partial(draw, steps, min(num_positions, PROFILED_POSITIONS)), device)
        launches[name] = launches_per_position(model, tokenizer, batch, steps)
        report.figure(name, {"positions_per_s": rates, "launches_per_position": launches[name], "profile": found})
        report.headline(f"{name}: {rates[str(batch)]:,.0f} positions/s at {batch}")
        if isinstance(steps, GraphSteps):
            report.check("capture", steps.can_capture, "a step could not be captured; the part's output says why")
    for name, found_BNC in codes.items():
        equal = float((found_BNC == codes["static"]).flatten(1).all(1).float().mean())
        detail = f"{equal:.0%} of the images equal those of static steps, at least {LEAST_EQUAL_IMAGES:.0%} expected"
        report.figure(f"equal images, {name}", equal)
        if name == "graph" or cpu:  # in bf16, growing steps round otherwise, and each code draws the next ones along
            report.check(f"codes, {name}", equal >= LEAST_EQUAL_IMAGES, detail)
    if "graph" in launches:
        fewer = launches["growing"] / max(launches["graph"], 1e-9)
        report.goal("fewer launches", fewer, f"{GOAL_FEWER_LAUNCHES:g} times", met=fewer >= GOAL_FEWER_LAUNCHES)


def _random_model(device: torch.device, *, cpu: bool) -> UniFork:
    """Returns a model with the generation branch alone; its weights are made on the device, which takes no time."""
    sizes = released_sizes(cpu=cpu)
    dtype = torch.float32 if cpu else half_precision(device)  # growing steps draw as static ones in fp32 alone
    generation = sizes.model.model_copy(update={"tasks": (Task.GENERATION,)})
    config = WeightsConfig(model=generation, dimensions=sizes.dimensions)
    model = allocate_model(config, choose_attention_kernel(device, dtype), device=device, dtype=dtype)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=STANDARD_DEVIATION)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        model.set_codebook(torch.randn(sizes.dimensions.codebook_size, sizes.dimensions.code_width, device=device))
    use_kernels(model, choose_kernels(device))
    return model.eval()
