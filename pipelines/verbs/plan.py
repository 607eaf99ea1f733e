"""Estimates step time, pipeline bubble, memory per rank and bytes sent of the layouts for N devices; recommends one.

Only layouts on which every phase of the recipe can train are recommended. --measure takes the rates of this machine
first and writes them to machine.yaml, for use with --gpu machine.yaml later.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.recipe_arguments import add_recipe_arguments, recipe_of
from pipelines.text_arguments import whole_number

if TYPE_CHECKING:
    from pipelines.recipe import Recipe
    from ufork.parallel.config import LayoutConfig
    from ufork.planning.machine import MachineProfile
    from ufork.planning.planner import Candidate, Plan
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
        help="kind of device: h100, h200, a100, v100, t4, or a file that --measure wrote (default: %(default)s)",
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
    if arguments.measure:
        from pipelines.doctor.machine_rates import measure_machine

        machine = measure_machine(workload_of(recipe, arguments.phase))
        write_whole(Path("machine.yaml"), machine.to_yaml())
        print("machine.yaml: the rates of this machine")
    else:
        machine = profile_of(arguments.gpu)
    workload = workload_of(recipe, arguments.phase, machine)
    if refusal := _refusal_of_own_layout(recipe, arguments.gpus):
        print(f"the recipe's own layout ({recipe.layout.describe()}) is refused: {refusal}")
    plan = plan_for(recipe, workload, machine, num_devices=arguments.gpus)
    print(_table(plan, workload))
    print(_details(plan.recommended, workload, machine))
    print(_recommendation(plan))
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


def workload_of(recipe: "Recipe", phase: str | None, machine: "MachineProfile | None" = None) -> "Workload":
    """Returns what a phase of `recipe` computes; sizes that tokenizers decide are those that the recipe asks for.

    Without a `machine`, `train.precision=auto` is bf16.

    Raises:
        ConfigError: the recipe has no such phase, or asks for a precision that the machine does not have.
    """
    from pipelines.check_recipe import nominal_dimensions, nominal_image_tokenizer
    from ufork.errors import ConfigError
    from ufork.planning.fused_kernels import FUSED, UNFUSED
    from ufork.planning.workload import Workload
    from ufork.vocabulary import Task

    if not recipe.phases:
        raise ConfigError("phases: the recipe has none, so there is nothing to train; name at least one")
    if phase is not None and phase not in recipe.phases:
        raise ConfigError(f"--phase {phase}: the recipe's phases are {', '.join(recipe.phases)}")
    both = [name for name, s in recipe.phases.items() if len(s.train.global_batch_size.by_task) == len(Task)]
    chosen = recipe.phases[phase or (both or list(recipe.phases))[0]]
    vision = nominal_image_tokenizer(recipe)
    return Workload(
        model=recipe.model,
        dimensions=nominal_dimensions(recipe),
        global_batch_size=chosen.train.global_batch_size.by_task,
        seq_len=chosen.data.seq_len,
        num_lanes=chosen.data.num_lanes,
        precision=_precision(chosen.train.precision, machine),
        recompute=chosen.train.activation_checkpointing,
        fused=FUSED if machine and machine.kernels and chosen.train.kernels == "auto" else UNFUSED,
        segment_tokens=min(vision.num_positions, chosen.data.seq_len),
        optimizer=chosen.train.optimizer,
    )


def _precision(asked_for: str, machine: "MachineProfile | None") -> str:
    from ufork.errors import ConfigError

    emulates = machine is not None and not machine.native_bf16
    if asked_for == "bf16" and emulates:
        assert machine
        raise ConfigError(
            f"train.precision=bf16: {machine.name} does not compute bf16 natively, which takes compute capability 8.0"
            " (Ampere) or newer; set train.precision=auto to use fp32"
        )
    return "fp32" if asked_for == "fp32" or emulates else "bf16"


def _refusal_of_own_layout(recipe: "Recipe", num_devices: int) -> str:
    from pipelines.check_recipe import check_recipe
    from ufork.errors import ConfigError

    try:
        check_recipe(recipe, num_devices)
    except ConfigError as error:
        return str(error)
    return ""


def _details(chosen: "Candidate", workload: "Workload", machine: "MachineProfile") -> str:
    """What the fullest rank's memory and the busiest stage's time of the recommended layout consist of."""
    from ufork.planning.planner import without_recompute
    from ufork.planning.step_time import step_terms

    fullest, memory = max(chosen.memory.items(), key=lambda item: item[1].total)
    busiest = min(chosen.step.bubble, key=lambda stage: chosen.step.bubble[stage])
    terms = step_terms(workload, machine, chosen.layout, busiest)
    operations = sum(workload.cost(task).training * number for task, number in workload.global_batch_size.items())
    peak = machine.peak_gflops(workload.precision) * 1e9 * chosen.num_ranks
    gb = 1e9
    outside = f"; {memory.outside / gb:.1f} outside torch's allocator" if machine.kernels else ""
    pinned = f"; {memory.pinned_host / gb:.1f} of the host's, page-locked, for checkpoints" if machine.kernels else ""
    keeping = without_recompute(chosen, workload, machine)
    hint = keeping and (
        f"train.activation_checkpointing=false fits, too ({keeping.fullest / gb:.1f} GB), and takes"
        f" {1 - keeping.step.seconds / chosen.step.seconds:.0%} less time"
    )
    return "\n".join(
        [
            "",
            f"step ({busiest}): {_largest_first(terms, 1e-3, 'ms')}",
            f"memory in GB ({fullest}): {_largest_first(memory.at_peak, gb)}{outside}{pinned}",
            f"model FLOPs utilization: {operations / chosen.step.seconds / peak:.2f}",
            *([hint] if hint else []),
        ]
    )


def _largest_first(parts: Mapping[str, float], unit: float, name: str = "") -> str:
    """Returns the values of at least a hundredth of their sum; with the name of a unit, also their shares."""
    total = sum(parts.values())
    shown = []
    for part, value in sorted(parts.items(), key=lambda item: -item[1]):
        if value >= total / 100:
            share = f" {name} ({value / total:.0%})" if name else ""
            digits = f"{value / unit:,.0f}" if value >= 100 * unit else f"{value / unit:.3g}"
            shown.append(f"{part.replace('_', ' ')} {digits}{share}")
    return ", ".join(shown)


def _table(plan: "Plan", workload: "Workload") -> str:
    tokens = sum(workload.global_batch_size.values()) * workload.seq_len
    lines = [f"{'layout (tp x dp)':62} ranks  step ms  tokens/s   GB/rank  sent GB  bubble"]
    for candidate in plan.candidates[:SHOWN]:
        step = candidate.step
        bubble = " ".join(f"{stage[0]}{share:.0%}" for stage, share in step.bubble.items())
        lines.append(
            f"{candidate.config.describe():62} {candidate.num_ranks:5}  {step.seconds * 1e3:7.1f}"
            f" {tokens / step.seconds:9,.0f}  {candidate.fullest / 1e9:8.2f} {step.p2p_bytes / 1e9:8.2f}  {bubble}"
        )
    return "\n".join(lines)


def _recommendation(plan: "Plan") -> str:
    import yaml

    chosen = plan.recommended
    layout = {"kind": chosen.config.kind} | chosen.config.model_dump(mode="json", exclude_defaults=True)
    for_the_recipe = yaml.safe_dump({"layout": layout}, default_flow_style=None, sort_keys=False)
    return f"\nrecommended: {chosen.config.describe()}: {plan.reason}\n{for_the_recipe.strip()}"
