"""Renders the batch script of a training job, for `sbatch`.

JobRequest + slurm/train.sbatch -> #SBATCH lines, values in place of the environment's, and the script's own body

Values become text of two languages. In the shell they are quoted. `#SBATCH` lines have a different syntax, so their
values must match a pattern (`SBATCH_OPTIONS`) or, for paths, consist of characters that double quotes protect.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ufork.errors import ConfigError

TEMPLATE = Path(__file__).parents[2] / "slurm" / "train.sbatch"
WARNING_SECONDS = 120
"""Seconds before the time limit at which ranks are asked to save: two checkpoints, and a minute for rounding."""
SBATCH_OPTIONS = {
    "partition": r"[\w.,-]+",
    "account": r"[\w.@+/-]+",
    "qos": r"[\w.@+-]+",
    "exclude": r"[\w.,\[\]-]+",
    "reservation": r"[\w.,@+-]+",
    "constraint": r"[\w.,&|*()\[\]@:=+!-]+",
    "cpus-per-task": r"[1-9]\d*",
    "time": r"(\d+-)?\d+(:\d+){0,2}|UNLIMITED",
}
"""sbatch's options that a user may set, and the pattern of their values."""
_JOB_NAME = r"\w[\w.-]*"
_PATH_REFUSED = '"\\'
"""A backslash turns off the %j of Slurm's file names; a double quote ends the quoting of an #SBATCH line."""
_MOUNT_REFUSED = ",:"
_BODY_BEGINS = "set -euo pipefail\n"


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """One job: what it asks of the cluster, and what it runs.

    Raises:
        ConfigError: a value cannot be written into the script; names the value.
    """

    run: Path
    """Folder of the run, absolute as all paths here."""
    recipe: Path
    """The resolved recipe to train."""
    code: Path
    """The folder that has `pipelines` and its siblings, from which the job imports."""
    python: str
    """The interpreter on every node, or inside the container."""
    nodes: int
    ranks_per_node: int
    has_gpus: bool
    """Whether each rank has a GPU; such nodes are used exclusively."""
    time: str
    """Time limit, as Slurm writes it: 24:00:00."""
    restarts: int
    phase: str | None = None
    """Phase of the recipe; None trains all."""
    checks_nodes: bool = True
    container: str | None = None
    """An image that pyxis runs."""
    mounts: tuple[str, ...] = ()
    """Mounts, HOST:INSIDE each, besides the folder of the run and the one that the job is submitted from."""
    options: dict[str, str] = field(default_factory=dict)
    """More of sbatch's options, by name: see `SBATCH_OPTIONS`."""

    def __post_init__(self) -> None:
        for name, value in [("time", self.time), *self.options.items()]:
            _require_match(f"--{name}", value, SBATCH_OPTIONS[name])
        _require_match("run.name and the phase's name", self.name, _JOB_NAME, flags=0)
        for origin, text in self._texts():
            _require_printable(origin, text)
        _require_without("run.folder", str(self.run), _PATH_REFUSED)
        if self.container:
            _require_without("run.folder, mounted by --container,", str(self.run), _MOUNT_REFUSED)

    def _texts(self) -> Iterator[tuple[str, str]]:
        yield "run.folder", str(self.run)
        yield "the recipe's path", str(self.recipe)
        yield "the code's path", str(self.code)
        yield "--python", self.python
        yield "--container", self.container or ""
        yield from (("--mount", mount) for mount in self.mounts)

    @property
    def num_ranks(self) -> int:
        """Number of ranks of the whole job."""
        return self.nodes * self.ranks_per_node

    @property
    def name(self) -> str:
        """Name of the job, which `squeue` shows."""
        return self.run.name if self.phase is None else f"{self.run.name}-{self.phase}"


def _require_match(origin: str, value: str, pattern: str, *, flags: int = re.ASCII) -> None:
    if not re.fullmatch(pattern, value, flags):
        raise ConfigError(f"{origin}: {value!r} is not a valid value; expected a match of the pattern {pattern}")


def _require_printable(origin: str, text: str) -> None:
    if not text.isprintable():
        raise ConfigError(f"{origin}: {text!r} has line ends or other control characters; use another name")


def _require_without(origin: str, text: str, refused: str) -> None:
    if found := [character for character in refused if character in text]:
        raise ConfigError(f"{origin}: {text!r} contains {' '.join(found)}, which Slurm's syntax cannot express")


def render(request: JobRequest, template: str) -> str:
    """Returns the script; `template` is the text of slurm/train.sbatch."""
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
    logs = str(request.run / "slurm" / "logs").replace("%", "%%")
    return {
        "job-name": request.name,
        "nodes": str(request.nodes),
        **per_node,
        "time": request.time,
        **request.options,
        "output": f'"{logs}/%j.log"',
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
        values["UFORK_CONTAINER"] = request.container
        values["UFORK_MOUNTS"] = ",".join([f"{request.run}:{request.run}", *request.mounts])
    return values


def _summary(request: JobRequest) -> str:
    phase = f"phase {request.phase}" if request.phase else "all phases"
    rank = "GPU" if request.has_gpus else "rank"
    return (
        f"{request.run.name}, {phase}: {request.nodes} nodes x {request.ranks_per_node} {rank}s = {request.num_ranks}"
        f" ranks, at most {request.restarts} restarts"
    )
