"""Checks of what surrounds training: compilers, Slurm, Weights & Biases."""

import netrc
import re
from pathlib import Path

from pipelines.commands import NoAnswer, Reason
from pipelines.doctor.finding import Finding, Mark, mark_of
from pipelines.doctor.packages import installed_version
from pipelines.doctor.surroundings import Surroundings

WANDB_HOST = "api.wandb.ai"


def compilers(around: Surroundings) -> Finding:
    """Checks the compilers that DeepSpeed builds its operators with at their first use."""
    here = {name: _version_of(name, around) for name in ("g++", "ninja", "nvcc") if around.has_program(name)}
    missing = [name for name in ("g++", "ninja", *(["nvcc"] if around.has_gpu else [])) if name not in here]
    found = ", ".join(f"{name} {version}" for name, version in here.items())
    instead = "compiles nothing, unless train.deepspeed offloads the optimizer"
    if missing:
        return Finding(
            name="compilers",
            mark=Mark.ABSENT,
            found=f"no {', '.join(missing)}" + (f"; {found}" if found else ""),
            instead=instead,
            remedy="apt install g++; pip install ninja; nvcc: the CUDA toolkit of torch's CUDA version",
        )
    built_for = around.ask_python("torch")["cuda"] if around.has_gpu else None
    if built_for and built_for.split(".")[0] != here["nvcc"].split(".")[0]:
        return Finding(
            name="compilers",
            mark=Mark.PROBLEM,
            found=f"{found}, but torch was built for CUDA {built_for}: DeepSpeed refuses to compile",
            instead=instead,
            remedy=f"install CUDA toolkit {built_for} and point CUDA_HOME to it",
        )
    return Finding(name="compilers", found=found)


def _version_of(program: str, around: Surroundings) -> str:
    try:
        numbers = re.findall(r"\d+\.\d[\d.]*", around.ask(program, "--version"))
    except NoAnswer as reason:
        return f"({reason})"
    return numbers[0] if numbers else "of unknown version"


def slurm(around: Surroundings) -> Finding:
    """Checks whether jobs can be submitted from here."""
    try:
        version = around.ask("sbatch", "--version")
        state = around.ask("scontrol", "ping")
    except NoAnswer as reason:
        if reason.reason is Reason.MISSING:
            return Finding(
                name="Slurm",
                mark=Mark.ABSENT,
                found="no sbatch" if not around.has_program("sbatch") else "no scontrol",
                instead="starts ranks on this machine, or joins those of torchrun",
                remedy="log in to a cluster's login node",
            )
        return Finding(
            name="Slurm",
            mark=mark_of(reason),
            found=f"sbatch is installed, but the cluster does not answer: {reason}",
            instead="cannot submit",
            remedy="try sinfo and scontrol ping; ask the cluster's administrators",
        )
    return Finding(name="Slurm", found="; ".join([version, *state.splitlines()[:1]]))


def wandb(around: Surroundings) -> Finding:
    """Checks whether runs can be reported, and whether there is an API key to send them with; never shows the key."""
    version = installed_version("wandb")
    if version is None:
        return Finding(
            name="wandb",
            mark=Mark.ABSENT,
            found="not installed",
            instead="trains with train.wandb.mode=disabled only",
            remedy="pip install wandb",
        )
    mode = around.environment.get("WANDB_MODE")
    ignored = f"; WANDB_MODE={mode} is ignored, train.wandb.mode decides" if mode else ""
    if _has_key(around):
        return Finding(
            name="wandb",
            found=f"{version}, with a key{ignored}",
            instead="reports as train.wandb.mode says, offline by default",
        )
    return Finding(
        name="wandb",
        found=f"{version}, without a key{ignored}",
        instead="reports offline, the default; wandb sync RUN/phases/NAME/wandb/offline-run-* sends it later",
        remedy="run wandb login or set WANDB_API_KEY, for train.wandb.mode=online",
    )


def _has_key(around: Surroundings) -> bool:
    if around.environment.get("WANDB_API_KEY"):
        return True
    path = Path(around.environment.get("NETRC", around.home / ".netrc"))
    try:
        return netrc.netrc(path).authenticators(WANDB_HOST) is not None
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False
