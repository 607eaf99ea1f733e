"""Estimates step time, pipeline bubble, memory per rank and bytes sent of the layouts for N devices; recommends one.

Only layouts on which every phase of the recipe can train are recommended. --measure takes the rates of this machine
first and writes them to machine.yaml, for use with --gpu machine.yaml later.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.recipe_arguments import add_recipe_arguments, recipe_of
from pipelines.text_arguments import whole_number

if TYPE_CHECKING:
    from pipelines.recipe import Recipe
    from ufork.parallel.config import LayoutConfig
    from ufork.planning.machine import MachineProfile
    from ufork.planning.planner import Plan
    from ufork.planning.workload import Workload

SHOWN = 8
"""Most layouts in the table."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe, the devices, and what to measure or draw."""
    add_recipe_arguments(parser)
    parser.add_argument("--gpus", type=whole_number, required=True, metavar="N", help="number of devices in the job")
    parser.add_argument(
        "--gpu",
        default="h100",
        help="kind of device: h100, a100, or a file that --measure wrote (default: %(default)s)",
    )
    parser.add_argument(
        "--phase", metavar="NAME", help="recipe phase to plan for (default: the first that trains both tasks)"
    )
    parser.add_argument(
        "--measure", action="store_true", help="measure this machine, write machine.yaml and plan for machines like it"
    )
    parser.add_argument(
        "--scaling", type=Path, metavar="PNG", help="draw the estimated tokens per second on 8 to N devices"
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints the plan.

    Raises:
        UforkError: a value is at fault, or no layout fits.
    """
    recipe = recipe_of(arguments)

    from ufork.errors import ConfigError
    from ufork.files import write_whole
    from ufork.planning.machine import profile_of

    if arguments.gpus < 1:
        raise ConfigError(f"--gpus {arguments.gpus}: a job has at least one device")
    workload = workload_of(recipe, arguments.phase)
    if arguments.measure:
        from pipelines.doctor.machine_rates import measure_machine

        machine = measure_machine(workload)
        write_whole(Path("machine.yaml"), machine.to_yaml())
        print("machine.yaml: the rates of this machine")
    else:
        machine = profile_of(arguments.gpu)
    if refusal := _refusal_of_own_layout(recipe, arguments.gpus):
        print(f"the recipe's own layout ({recipe.layout.describe()}) is refused: {refusal}")
    plan = plan_for(recipe, workload, machine, num_devices=arguments.gpus)
    print(_table(plan, workload))
    if arguments.scaling:
        from ufork.planning.weak_scaling import draw_scaling, weak_scaling

        draw_scaling(weak_scaling(workload, machine, most_devices=arguments.gpus), arguments.scaling)
        print(f"scaling: {arguments.scaling}")


def plan_for(recipe: "Recipe", workload: "Workload", machine: "MachineProfile", *, num_devices: int) -> "Plan":
    """Plans for `workload`, a phase of `recipe`, with layouts in which all phases of `recipe` can train.

    Raises:
        ConfigError: there is none.
    """
    from pipelines.check_recipe import check_recipe
    from ufork.planning.planner import make_plan

    def check(layout: "LayoutConfig", num_ranks: int) -> None:
        check_recipe(recipe.model_copy(update={"layout": layout}), num_ranks)

    return make_plan(workload, machine, num_devices=num_devices, check=check)


def workload_of(recipe: "Recipe", phase: str | None) -> "Workload":
    """Returns what a phase of `recipe` computes; sizes that tokenizers decide are those that the recipe asks for.

    Raises:
        ConfigError: the recipe has no such phase.
    """
    from pipelines.check_recipe import nominal_dimensions
    from ufork.errors import ConfigError
    from ufork.planning.workload import Workload
    from ufork.vocabulary import Task

    if not recipe.phases:
        raise ConfigError("phases: the recipe has none, so there is nothing to train; name at least one")
    if phase is not None and phase not in recipe.phases:
        raise ConfigError(f"--phase {phase}: the recipe's phases are {', '.join(recipe.phases)}")
    both = [name for name, s in recipe.phases.items() if len(s.train.global_batch_size.by_task) == len(Task)]
    chosen = recipe.phases[phase or (both or list(recipe.phases))[0]]
    return Workload(
        model=recipe.model,
        dimensions=nominal_dimensions(recipe),
        global_batch_size=chosen.train.global_batch_size.by_task,
        seq_len=chosen.data.seq_len,
        num_lanes=chosen.data.num_lanes,
        precision="fp32" if chosen.train.precision == "fp32" else "bf16",
        recompute=chosen.train.activation_checkpointing,
        moments=2 if chosen.train.optimizer == "adamw" else 0,
    )


def _refusal_of_own_layout(recipe: "Recipe", num_devices: int) -> str:
    from pipelines.check_recipe import check_recipe
    from ufork.errors import ConfigError

    try:
        check_recipe(recipe, num_devices)
    except ConfigError as error:
        return str(error)
    return ""


def _table(plan: "Plan", workload: "Workload") -> str:
    import yaml

    tokens = sum(workload.global_batch_size.values()) * workload.seq_len
    lines = [f"{'layout (tp x dp)':62} ranks  step ms  tokens/s   GB/rank  sent GB  bubble"]
    for candidate in plan.candidates[:SHOWN]:
        step = candidate.step
        bubble = " ".join(f"{stage[0]}{share:.0%}" for stage, share in step.bubble.items())
        lines.append(
            f"{candidate.config.describe():62} {candidate.num_ranks:5}  {step.seconds * 1e3:7.1f}"
            f" {tokens / step.seconds:9,.0f}  {candidate.fullest / 1e9:8.2f} {step.p2p_bytes / 1e9:8.2f}  {bubble}"
        )
    chosen = plan.recommended
    layout = {"kind": chosen.config.kind} | chosen.config.model_dump(mode="json", exclude_defaults=True)
    for_the_recipe = yaml.safe_dump({"layout": layout}, default_flow_style=None, sort_keys=False)
    return "\n".join([*lines, "", f"recommended: {chosen.config.describe()}: {plan.reason}", for_the_recipe.strip()])
