"""What results were made with: the commit of ufork, and the machine."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pipelines.cgroups import usable_cores
from pipelines.commands import NoAnswer, ask
from pipelines.demo.machine import cpu_name
from pipelines.nvidia_smi import parse_table, table_command
from ufork.parallel.nvidia_devices import uses_cuda

SOURCE = Path(__file__).parents[2]
COMMIT_FILE = "COMMIT"
"""File in a copy of the code that is no checkout: the commit it was copied from."""
ASK_SECONDS = 30.0
"""Time limit of git and nvidia-smi."""


def commit_of(source: Path, environment: Mapping[str, str]) -> str:
    """Returns the commit of the code in `source`, with + if files were changed since; empty if it is unknown."""

    def git(*arguments: str) -> str:
        return ask(("git", "-C", str(source), *arguments), environment=environment, timeout_seconds=ASK_SECONDS)

    if (source / COMMIT_FILE).exists():
        return (source / COMMIT_FILE).read_text(encoding="utf-8").strip()
    try:
        if Path(git("rev-parse", "--show-toplevel")) != source.resolve():
            return ""
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changes else "")
    except NoAnswer:
        return ""


def machine_of(environment: Mapping[str, str]) -> str:
    """Returns cores, CPU and what torch uses of it, or the GPUs."""
    if uses_cuda(environment):
        return _gpus(environment)
    import torch

    return f"{usable_cores()} cores of {cpu_name()}, {torch.backends.cpu.get_cpu_capability()} in torch"


def _gpus(environment: Mapping[str, str]) -> str:
    fields = ("name",)
    try:
        printed = ask(table_command("gpu", fields), environment=environment, timeout_seconds=ASK_SECONDS)
    except NoAnswer as answer:
        return f"GPUs ({answer})"
    names = Counter(row["name"] for row in parse_table(printed, fields).rows)
    return ", ".join(f"{number} x {name}" for name, number in names.items())
