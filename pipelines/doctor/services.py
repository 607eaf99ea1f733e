"""Checks of what stands around training: compilers, Slurm, Weights & Biases."""

import netrc
import re
from pathlib import Path

from pipelines.commands import NoAnswer, ask, ask_python, has_program
from pipelines.doctor.finding import Finding, Mark, Surroundings
from pipelines.doctor.packages import installed_version

WANDB_HOST = "api.wandb.ai"


def compilers(around: Surroundings) -> Finding:
    """What DeepSpeed compiles its operators with, at their first use."""
    here = {name: _version_of(name, around) for name in ("g++", "ninja", "nvcc") if has_program(name, around)}
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
    built_for = ask_python("torch", around)["cuda"] if around.has_gpu else None
    if built_for and built_for.split(".")[0] != here["nvcc"].split(".")[0]:
        return Finding(
            name="compilers",
            mark=Mark.PROBLEM,
            found=f"{found}, but torch was built for CUDA {built_for}: DeepSpeed refuses to compile",
            instead=instead,
            remedy=f"CUDA toolkit {built_for}, and CUDA_HOME pointing to it",
        )
    return Finding(name="compilers", found=found)


def _version_of(program: str, around: Surroundings) -> str:
    try:
        numbers = re.findall(r"\d+\.\d[\d.]*", ask([program, "--version"], around))
    except NoAnswer as reason:
        return f"does not run ({reason})"
    return numbers[0] if numbers else "of unknown version"


def slurm(around: Surroundings) -> Finding:
    """Whether jobs can be submitted from here."""
    if not has_program("sbatch", around):
        return Finding(
            name="Slurm",
            mark=Mark.ABSENT,
            found="no sbatch",
            instead="starts ranks on this machine, or joins torchrun's",
            remedy="a login node of a cluster",
        )
    try:
        version = ask(["sbatch", "--version"], around)
        state = ask(["scontrol", "ping"], around)
    except NoAnswer as reason:
        return Finding(
            name="Slurm",
            mark=Mark.PROBLEM,
            found=f"sbatch is here, the cluster does not answer: {reason}",
            instead="cannot submit",
            remedy="sinfo and scontrol ping tell more; ask who runs the cluster",
        )
    return Finding(name="Slurm", found=f"{version}; {state.splitlines()[0]}")


def wandb(around: Surroundings) -> Finding:
    """Whether runs can be reported, and whether there is a key to send them with; never which."""
    version = installed_version("wandb")
    if version is None:
        return Finding(
            name="wandb",
            mark=Mark.ABSENT,
            found="not installed",
            instead="trains with train.wandb.mode=disabled alone",
            remedy="pip install wandb",
        )
    mode = around.environment.get("WANDB_MODE")
    told = f"; WANDB_MODE={mode} is set, and train.wandb.mode counts" if mode else ""
    if _has_key(around):
        return Finding(
            name="wandb",
            found=f"{version}, with a key{told}",
            instead="reports as train.wandb.mode says, offline by default",
        )
    return Finding(
        name="wandb",
        found=f"{version}, without a key{told}",
        instead="reports offline, the default; wandb sync RUN/phases/NAME/wandb/offline-run-* sends it later",
        remedy="wandb login, or WANDB_API_KEY, for train.wandb.mode=online",
    )


def _has_key(around: Surroundings) -> bool:
    if around.environment.get("WANDB_API_KEY"):
        return True
    path = Path(around.environment.get("NETRC", around.home / ".netrc"))
    try:
        return netrc.netrc(path).authenticators(WANDB_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False
