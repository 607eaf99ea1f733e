"""Submits a recipe's training to Slurm: one job, or one per phase of --chain, each after the one before.

Code and resolved recipe are kept in RUN/submissions, so that a job that begins again runs what was submitted.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.recipe_arguments import add_recipe_arguments, recipe_of

if TYPE_CHECKING:
    from pipelines.cluster.slurm_job import JobRequest
    from pipelines.cluster.submission import Submission
    from pipelines.recipe import Recipe

SBATCH_OPTIONS = ("partition", "account", "qos", "exclude", "reservation", "constraint", "cpus-per-task")
"""Handed to sbatch as they are."""
BETWEEN_JOBS = "\n# ======== the next job: sbatch --dependency=afterok:JOB_ABOVE --kill-on-invalid-dep=yes\n\n"
"""In what --dry-run shows of a chain."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe, the size and time of the job, and what the cluster wants to know."""
    add_recipe_arguments(parser)
    parser.add_argument("--nodes", type=int, required=True, metavar="N")
    ranks = parser.add_mutually_exclusive_group(required=True)
    ranks.add_argument("--gpus-per-node", type=int, metavar="N", help="one rank each")
    ranks.add_argument("--ranks-per-node", type=int, metavar="N", help="on nodes without GPUs")
    parser.add_argument("--time", default="24:00:00", help="limit of each start, as Slurm writes it (%(default)s)")
    parser.add_argument("--chain", metavar="A,B,C", help="these phases, one job each")
    parser.add_argument("--restarts", type=int, default=10, help="at most so many of each job (%(default)s)")
    parser.add_argument("--container", metavar="IMAGE", help="run by pyxis; its Python is python3 unless --python")
    parser.add_argument(
        "--mount", action="append", default=[], metavar="HOST:INSIDE", help="besides RUN and this folder"
    )
    parser.add_argument("--python", help="on the nodes; the one that runs this unless given")
    parser.add_argument("--no-node-check", action="store_true", help="start without the health check of the nodes")
    for option in SBATCH_OPTIONS:
        parser.add_argument(f"--{option}", help="sbatch's")
    parser.add_argument("--dry-run", action="store_true", help="print the scripts, write and submit nothing")


def run(arguments: argparse.Namespace) -> None:
    """Submits, or prints what would be.

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
    jobs = submission.submit(requests, template)
    print(_how_to_follow(requests, jobs, submission.path))


def _phases(recipe: "Recipe", chain: str | None) -> list[str | None]:
    """Of each job; None is all of them."""
    from ufork.errors import ConfigError

    known = list(recipe.phases)
    if not known:
        raise ConfigError("phases: the recipe has none, so there is nothing to train; name at least one")
    if chain is None:
        return [None]
    chosen = chain.split(",")
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(f"--chain: {', '.join(unknown)} is no phase of the recipe, which has {', '.join(known)}")
    first = known.index(chosen[0])
    if chosen != known[first : first + len(chosen)]:
        raise ConfigError(
            f"--chain {chain}: each phase starts from the weights of the one before; the recipe's order is"
            f" {','.join(known)}"
        )
    return list(chosen)


def _require_fitting(recipe: "Recipe", arguments: argparse.Namespace) -> None:
    from ufork.errors import ConfigError
    from ufork.parallel.layout import make_layout

    per_node = _ranks_per_node(arguments)
    if arguments.nodes < 1 or per_node < 1 or arguments.restarts < 0:
        raise ConfigError(
            f"--nodes {arguments.nodes}, {per_node} ranks per node, --restarts {arguments.restarts}: a"
            " job has at least one node with one rank, and no fewer than 0 restarts"
        )
    num_ranks = arguments.nodes * per_node
    for name, phase in recipe.phases.items():
        try:
            make_layout(recipe.layout, num_ranks=num_ranks, global_batch_size=phase.train.global_batch_size.by_task)
        except ConfigError as error:
            raise ConfigError(
                f"phase {name} on {arguments.nodes} nodes x {per_node} = {num_ranks} ranks: {error}."
                f" `ufork plan {arguments.recipe} --gpus {num_ranks}` finds layouts that fit"
            ) from None


def _ranks_per_node(arguments: argparse.Namespace) -> int:
    return arguments.ranks_per_node if arguments.gpus_per_node is None else arguments.gpus_per_node


def _request(
    arguments: argparse.Namespace, recipe: "Recipe", submission: "Submission", phase: str | None
) -> "JobRequest":
    from pipelines.cluster.slurm_job import JobRequest

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
        options={option: value for option, value in given.items() if value},
    )


def _how_to_follow(requests: "list[JobRequest]", jobs: list[int], kept: Path) -> str:
    run = requests[0].run
    numbered = [f"job {job}: {request.phase or 'all phases'}" for request, job in zip(requests, jobs, strict=True)]
    return "\n".join(
        [
            *numbered,
            f"kept:    {kept}",
            f"follow:  tail -F {run}/slurm/logs/{jobs[0]}.log {run}/slurm/logs/{jobs[0]}-0.log",
            f"state:   ufork status {run}",
            f"cancel:  scancel {' '.join(map(str, jobs))}",
        ]
    )
