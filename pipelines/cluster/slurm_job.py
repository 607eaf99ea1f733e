"""The batch script of a training job: what was asked for, as text for `sbatch`.

JobRequest + slurm/train.sbatch -> #SBATCH lines, values in place of the environment's, and the script's own body
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

TEMPLATE = Path(__file__).parents[2] / "slurm" / "train.sbatch"
WARNING_SECONDS = 120
"""Before the time limit, to save in: as long as two checkpoints take, and a minute for Slurm's own rounding."""
_BODY_BEGINS = "set -euo pipefail\n"


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """One job: what it asks of the cluster, and what it runs."""

    run: Path
    """Folder of the run, absolute as all paths here."""
    recipe: Path
    """The resolved recipe that is trained."""
    code: Path
    """What is imported: the folder that has `pipelines` and its siblings."""
    python: str
    """The interpreter on every node, or inside the container."""
    nodes: int
    ranks_per_node: int
    has_gpus: bool
    """Whether each rank has one; such nodes are taken whole."""
    time: str
    """Limit, as Slurm writes it: 24:00:00."""
    restarts: int
    phase: str | None = None
    """Of the recipe; None trains all."""
    checks_nodes: bool = True
    container: str | None = None
    """An image that pyxis runs."""
    mounts: tuple[str, ...] = ()
    """As HOST:INSIDE, besides the folder of the run and the one that the job is submitted from."""
    options: dict[str, str] = field(default_factory=dict)
    """More of sbatch's: partition, account, qos, exclude."""

    @property
    def num_ranks(self) -> int:
        """Of the whole job."""
        return self.nodes * self.ranks_per_node

    @property
    def name(self) -> str:
        """The job's, which `squeue` shows."""
        return self.run.name if self.phase is None else f"{self.run.name}-{self.phase}"


def render(request: JobRequest, template: str) -> str:
    """The script; `template` is the text of slurm/train.sbatch."""
    _, _, body = template.partition(_BODY_BEGINS)
    assert body, f"{TEMPLATE} has no line {_BODY_BEGINS!r}"
    options = "".join(f"#SBATCH --{name}={value}\n" for name, value in _options(request).items())
    values = "".join(f"{name}={shlex.quote(value)}\n" for name, value in _values(request).items())
    phase = [] if request.phase is None else ["--phase", request.phase]
    arguments = shlex.join([str(request.recipe), *phase])
    return (
        "#!/usr/bin/env bash\n"
        f"{options}#SBATCH --requeue\n{'#SBATCH --exclusive' + chr(10) if request.has_gpus else ''}"
        f"# {_summary(request)}\n{_BODY_BEGINS}\n{values}export PYTHONPATH={shlex.quote(str(request.code))}\n"
        f"set -- {arguments}\n{body}"
    )


def _options(request: JobRequest) -> dict[str, str]:
    per_node = {"ntasks-per-node": str(request.ranks_per_node)}
    if request.has_gpus:
        per_node |= {"gpus-per-node": str(request.ranks_per_node), "mem": "0"}
    return {
        "job-name": request.name,
        "nodes": str(request.nodes),
        **per_node,
        "time": request.time,
        **request.options,
        "output": f"{request.run}/slurm/logs/%j.log",
        "open-mode": "append",
        "signal": f"B:USR1@{WARNING_SECONDS}",
    }


def _values(request: JobRequest) -> dict[str, str]:
    values = {
        "UFORK_RUN": str(request.run),
        "UFORK_PYTHON": request.python,
        "UFORK_PHASE": request.phase or "",
        "UFORK_MAX_RESTARTS": str(request.restarts),
        "UFORK_CHECK_NODES": str(int(request.checks_nodes)),
    }
    if request.container:
        mounts = ",".join([f"{request.run}:{request.run}", *request.mounts])
        values["UFORK_CONTAINER"] = f"--container-image={request.container} --container-mounts={mounts}"
    return values


def _summary(request: JobRequest) -> str:
    phase = f"phase {request.phase}" if request.phase else "all phases"
    rank = "GPU" if request.has_gpus else "rank"
    return (
        f"{request.run.name}, {phase}: {request.nodes} nodes x {request.ranks_per_node} {rank}s = {request.num_ranks}"
        f" ranks, at most {request.restarts} restarts"
    )
