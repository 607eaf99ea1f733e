"""Submits a recipe's training to Slurm: one job, or one job per phase of --chain, each after the one before it.

The code and the resolved recipe are copied to RUN/submissions, so that a restarted job runs what was submitted.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.recipe_arguments import add_recipe_arguments, recipe_of
from pipelines.terminal import show
from pipelines.text_arguments import whole_number

if TYPE_CHECKING:
    from pipelines.cluster.slurm_job import JobRequest
    from pipelines.cluster.submission import Submission
    from pipelines.recipe import Recipe

BETWEEN_JOBS = "\n# ======== the next job: sbatch --dependency=afterok:JOB_ABOVE --kill-on-invalid-dep=yes\n\n"
"""Separator that --dry-run prints between the scripts of a chain."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe, the size and time limit of the job, and options of sbatch."""
    from pipelines.cluster.slurm_job import SBATCH_OPTIONS

    add_recipe_arguments(parser)
    parser.add_argument("--nodes", type=whole_number, required=True, metavar="N", help="number of nodes")
    ranks = parser.add_mutually_exclusive_group(required=True)
    ranks.add_argument(
        "--gpus-per-node", type=whole_number, metavar="N", help="number of GPUs per node; each gets one rank"
    )
    ranks.add_argument(
        "--ranks-per-node", type=whole_number, metavar="N", help="number of ranks per node, on nodes without GPUs"
    )
    parser.add_argument(
        "--time", default="24:00:00", metavar="LIMIT", help="time limit of each start, in sbatch's format (%(default)s)"
    )
    parser.add_argument(
        "--chain",
        metavar="A,B,C",
        help="train these consecutive phases, in one job each (default: all phases in one job)",
    )
    parser.add_argument(
        "--restarts", type=whole_number, default=10, metavar="N", help="how often each job may restart (%(default)s)"
    )
    parser.add_argument("--container", metavar="IMAGE", help="container image in which pyxis runs the ranks")
    parser.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="HOST:INSIDE",
        help="folder to mount in the container, besides the run's folder and the current one",
    )
    parser.add_argument(
        "--python", metavar="PATH", help="Python on the nodes (default: this one; in a container: python3)"
    )
    parser.add_argument("--no-node-check", action="store_true", help="start without checking the health of the nodes")
    for option in SBATCH_OPTIONS:
        if option != "time":
            parser.add_argument(f"--{option}", metavar="VALUE", help=f"value of sbatch's option --{option}")
    parser.add_argument("--dry-run", action="store_true", help="print the scripts; write and submit nothing")


def run(arguments: argparse.Namespace) -> None:
    """Submits the jobs, or prints their scripts.

    Raises:
        UforkError: a value is at fault, the ranks do not fit the layout, or Slurm refuses.
    """
    recipe = recipe_of(arguments)
    phases = _phases(recipe, arguments.chain)
    _require_fitting(recipe, arguments)

    from pipelines.cluster.slurm_job import TEMPLATE, render
    from pipelines.cluster.submission import Submission
    from ufork.errors import ConfigError

    if not TEMPLATE.exists():
        raise ConfigError(f"{TEMPLATE}: missing; submit from a checkout of ufork (pip install -e), which has slurm/")
    template = TEMPLATE.read_text(encoding="utf-8")
    submission = Submission.next_of(recipe.run_folder.path.absolute())
    requests = [_request(arguments, recipe, submission, phase) for phase in phases]
    if arguments.dry_run:
        print(BETWEEN_JOBS.join(render(request, template) for request in requests), end="")
        return
    submission.keep(recipe)
    jobs = submission.submit(requests, template, os.environ)
    show(_how_to_follow(requests, jobs, submission.path))


def _phases(recipe: "Recipe", chain: str | None) -> list[str | None]:
    """Returns the phase of each job; None stands for all phases."""
    from ufork.errors import ConfigError

    known = list(recipe.phases)
    if not known:
        raise ConfigError("phases: the recipe has none, so there is nothing to train; add at least one")
    if chain is None:
        return [None]
    chosen = chain.split(",")
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(f"--chain: {', '.join(unknown)} is not a phase of the recipe, which has {', '.join(known)}")
    first = known.index(chosen[0])
    if chosen != known[first : first + len(chosen)]:
        raise ConfigError(
            f"--chain {chain}: each phase starts from the weights of the one before; use consecutive phases of"
            f" the recipe's order {','.join(known)}"
        )
    return list(chosen)


def _require_fitting(recipe: "Recipe", arguments: argparse.Namespace) -> None:
    from pipelines.check_recipe import check_recipe
    from ufork.errors import ConfigError

    per_node = _ranks_per_node(arguments)
    if arguments.nodes < 1 or per_node < 1 or arguments.restarts < 0:
        raise ConfigError(
            f"--nodes {arguments.nodes}, {per_node} ranks per node, --restarts {arguments.restarts}: a"
            " job needs at least one node with one rank, and 0 or more restarts"
        )
    if arguments.mount and not arguments.container:
        raise ConfigError(f"--mount {arguments.mount[0]}: only a container has mounts; give --container too")
    num_ranks = arguments.nodes * per_node
    try:
        check_recipe(recipe, num_ranks)
    except ConfigError as error:
        raise ConfigError(
            f"{arguments.nodes} nodes x {per_node} = {num_ranks} ranks: {error}."
            f" `ufork plan {arguments.recipe} --gpus {num_ranks}` finds layouts that fit"
        ) from None


def _ranks_per_node(arguments: argparse.Namespace) -> int:
    return arguments.ranks_per_node if arguments.gpus_per_node is None else arguments.gpus_per_node


def _request(
    arguments: argparse.Namespace, recipe: "Recipe", submission: "Submission", phase: str | None
) -> "JobRequest":
    from pipelines.cluster.slurm_job import SBATCH_OPTIONS, JobRequest

    given = {option: getattr(arguments, option.replace("-", "_")) for option in SBATCH_OPTIONS}
    here = Path.cwd()
    return JobRequest(
        run=recipe.run_folder.path.absolute(),
        recipe=submission.recipe,
        code=submission.code,
        python=arguments.python or ("python3" if arguments.container else sys.executable),
        nodes=arguments.nodes,
        ranks_per_node=_ranks_per_node(arguments),
        has_gpus=arguments.gpus_per_node is not None,
        time=arguments.time,
        restarts=arguments.restarts,
        phase=phase,
        checks_nodes=not arguments.no_node_check,
        container=arguments.container,
        mounts=(f"{here}:{here}", *arguments.mount),
        options={option: value for option, value in given.items() if value is not None and option != "time"},
    )


def _how_to_follow(requests: "list[JobRequest]", jobs: list[int], kept: Path) -> str:
    run = shlex.quote(str(requests[0].run))
    logs = [shlex.quote(f"{requests[0].run}/slurm/logs/{name}.log") for name in (str(jobs[0]), f"{jobs[0]}-0")]
    numbered = [f"job {job}: {request.phase or 'all phases'}" for request, job in zip(requests, jobs, strict=True)]
    return "\n".join(
        [
            *numbered,
            f"kept:    {kept}",
            f"follow:  tail -F {' '.join(logs)}",
            f"state:   ufork status {run}",
            f"cancel:  scancel {' '.join(map(str, jobs))}",
        ]
    )
