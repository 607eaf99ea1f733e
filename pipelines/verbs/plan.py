"""Estimates the layouts for a number of devices and recommends one: step time, bubble, memory per rank, bytes sent.

--measure takes the rates of this machine first and leaves them in machine.yaml, for --gpu machine.yaml later.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.recipe_arguments import add_recipe_arguments, recipe_of

if TYPE_CHECKING:
    from pipelines.recipe import Recipe
    from ufork.planning.planner import Plan
    from ufork.planning.workload import Workload

SHOWN = 8
"""Layouts in the table."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe, the devices, and where what is measured or drawn goes."""
    add_recipe_arguments(parser)
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="devices of the job")
    parser.add_argument("--gpu", default="h100", help="h100, a100, or a file of --measure")
    parser.add_argument("--phase", help="of the recipe; its first with both tasks unless given")
    parser.add_argument("--measure", action="store_true", help="take the rates of this machine")
    parser.add_argument("--scaling", type=Path, metavar="PNG", help="draw tokens per second from 8 to N devices")


def run(arguments: argparse.Namespace) -> None:
    """Prints the plan.

    Raises:
        UforkError: a value is at fault, or no layout fits.
    """
    recipe = recipe_of(arguments)

    from ufork.files import write_whole
    from ufork.planning.machine import profile_of
    from ufork.planning.planner import make_plan

    workload = workload_of(recipe, arguments.phase)
    if arguments.measure:
        from pipelines.doctor.machine_rates import measure_machine

        machine = measure_machine(workload)
        write_whole(Path("machine.yaml"), machine.to_yaml())
        print("machine.yaml: the rates of this machine")
    else:
        machine = profile_of(arguments.gpu)
    plan = make_plan(workload, machine, num_devices=arguments.gpus)
    print(_table(plan, workload))
    if arguments.scaling:
        from ufork.planning.weak_scaling import draw_scaling, weak_scaling

        draw_scaling(weak_scaling(workload, machine, most_devices=arguments.gpus), arguments.scaling)
        print(f"scaling: {arguments.scaling}")


def workload_of(recipe: "Recipe", phase: str | None) -> "Workload":
    """What a phase of `recipe` asks for; sizes that the tokenizers decide are taken from their configs.

    Raises:
        ConfigError: the recipe has no such phase.
    """
    from ufork.errors import ConfigError
    from ufork.model.config import Dimensions
    from ufork.planning.workload import Workload
    from ufork.vocabulary import Task

    if phase is not None and phase not in recipe.phases:
        raise ConfigError(f"--phase {phase}: the recipe's phases are {', '.join(recipe.phases)}")
    both = [name for name, s in recipe.phases.items() if len(s.train.global_batch_size.by_task) == len(Task)]
    chosen = recipe.phases[phase or (both or list(recipe.phases))[0]]
    return Workload(
        model=recipe.model,
        dimensions=Dimensions(
            vocab_size=QWEN_VOCABULARY if recipe.text.folder else recipe.text.vocab_size,
            codebook_size=recipe.vision.codebook_size,
            code_width=recipe.vision.code_width,
            codes_per_position=recipe.vision.codes_per_position,
        ),
        global_batch_size=chosen.train.global_batch_size.by_task,
        seq_len=chosen.data.seq_len,
        num_lanes=chosen.data.num_lanes,
        precision="fp32" if chosen.train.precision == "fp32" else "bf16",
        recompute=chosen.train.activation_checkpointing,
        moments=2 if chosen.train.optimizer == "adamw" else 0,
    )


QWEN_VOCABULARY = 151_680
"""Of Qwen2.5's tokenizer as a model has it (`TextTokenizer.padded_size`), planned for before a folder has been read."""


def _table(plan: "Plan", workload: "Workload") -> str:
    import yaml

    tokens = sum(workload.global_batch_size.values()) * workload.seq_len
    lines = [f"{'layout (tp x dp)':62} ranks  step ms  tokens/s   GB/rank  sent GB  bubble"]
    for candidate in plan.candidates[:SHOWN]:
        step = candidate.step
        bubble = " ".join(f"{phase[0]}{share:.0%}" for phase, share in step.bubble.items())
        lines.append(
            f"{candidate.config.describe():62} {candidate.num_ranks:5}  {step.seconds * 1e3:7.1f}"
            f" {tokens / step.seconds:9,.0f}  {candidate.fullest / 1e9:8.2f} {step.p2p_bytes / 1e9:8.2f}  {bubble}"
        )
    chosen = plan.recommended
    layout = {"kind": chosen.config.kind} | chosen.config.model_dump(mode="json", exclude_defaults=True)
    for_the_recipe = yaml.safe_dump({"layout": layout}, default_flow_style=None, sort_keys=False)
    return "\n".join([*lines, "", f"recommended: {chosen.config.describe()}: {plan.reason}", for_the_recipe.strip()])
