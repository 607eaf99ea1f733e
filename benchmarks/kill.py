"""Kills a training run repeatedly: `python -m benchmarks.kill --kills 200`.

Four ranks of the forked layout train a tiny model. All of them are killed (SIGKILL) at a random moment, every other
time while a checkpoint is being written, and the same command is run again, until the number of kills is reached; then
the run is left to finish. An uninterrupted run must have the same losses and the same weights (on CPUs; those of CUDA
devices are equal up to rounding only).

The last line is one JSON object: kills, starts that resumed from a checkpoint, steps that were repeated, damaged
checkpoints that a start resumed from, and whether losses and weights are equal.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from ufork.checkpoint.state import verify
from ufork.errors import CheckpointError
from ufork.report.metrics import read_metrics
from ufork.run_folder import PhaseFolder, RunFolder

RECIPE: dict[str, Any] = {
    "prepare": {
        "scenes": {"num_kinds": 6, "num_train_per_task": 300, "num_heldout_per_task": 60},
        "emoji": {"skin_tones": False},
    },
    "vision": {"fit": {"steps": 20}},
    "text": {"vocab_size": 400},
    "model": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "trunk_layers": 1,
        "understanding_layers": 1,
        "generation_layers": 1,
        "rq_head": {"hidden_size": 16, "attention_size": 16, "num_attention_heads": 2, "num_blocks": 1, "dropout": 0.0},
    },
    "data": {
        "seq_len": 512,
        "num_lanes": 4,
        "understanding": [{"folder": "codes/scenes/train"}],
        "generation": [{"folder": "codes/scenes/train"}],
    },
    "layout": {"kind": "forked", "trunk": {"tp": 2}},
    "train": {
        "precision": "fp32",
        "log_every_steps": 1,
        "checkpoint": {"every_steps": 7},
        "global_batch_size": {"understanding": 2, "generation": 2},
        "wandb": {"mode": "disabled"},
    },
    "phases": {"joint": {}},
}
STEPS_PER_KILL = 8
"""Steps of the whole run per kill; each start must on average get far enough for the run to end after the kills."""


def main() -> None:
    """Runs, kills, and compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        steps = STEPS_PER_KILL * arguments.kills
        named = {"run": {"folder": folder, "name": "undisturbed"}, **RECIPE}
        recipe.write_text(yaml.safe_dump({**named, "train": {**RECIPE["train"], "steps": steps}}), encoding="utf-8")
        log = Path(folder) / "log"
        for verb in (["prepare"], ["tokenizer", "text"], ["tokenizer", "fit"], ["tokenizer", "encode"], ["train"]):
            assert _start([*verb, str(recipe)], log).wait() == 0, log.read_text(encoding="utf-8")
        undisturbed, killed = Path(folder) / "undisturbed", Path(folder) / "killed"
        killed.mkdir()
        for folder in ("codes", "tokenizer"):
            (killed / folder).symlink_to(undisturbed / folder)
        command = ["train", str(recipe), "run.name=killed"]
        expected, phase = (RunFolder(run).phase("joint") for run in (undisturbed, killed))
        figures = kill_until_done(command, phase, log, kills=arguments.kills, seed=arguments.seed)
        same_losses = losses(phase) == losses(expected)
        same_weights = _weights(phase) == _weights(expected)
        print(f"losses equal: {same_losses}, weights equal: {same_weights}")
        figures["equal"] = same_losses and same_weights
        print(json.dumps(figures))


def kill_until_done(
    command: list[str], phase: PhaseFolder, log: Path, *, kills: int, seed: int
) -> dict[str, int | bool]:
    """Runs `command` repeatedly until it ends by itself, after killing it `kills` times.

    Args:
        command: arguments of `ufork`.
        phase: folder of the phase that is trained.
        log: file for the command's output.
        kills: number of kills, every other one while a checkpoint is written.
        seed: seed of the moments at which it is killed.

    Returns:
        kills, resumes, steps_repeated, corrupt_taken.
    """
    chance = random.Random(seed)
    figures: dict[str, int | bool] = dict.fromkeys(("kills", "resumes", "steps_repeated", "corrupt_taken"), 0)
    reached = 0
    while True:
        valid = _valid_checkpoints(phase)
        process = _start(command, log)
        if figures["kills"] < kills:
            _wait_for_the_moment(process, phase, chance, while_saving=figures["kills"] % 2 == 1)
        else:
            process.wait()
        ended = process.poll() == 0
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            figures["kills"] += 1
        process.wait()
        said = log.read_text(encoding="utf-8", errors="replace")
        if resumed := re.search(rf"resumed: {re.escape(str(phase.path))}/.*(step-(\d+)), after", said):
            figures["resumes"] += 1
            figures["steps_repeated"] += max(reached - int(resumed[2]), 0)
            figures["corrupt_taken"] += resumed[1] not in valid
        reached = len(losses(phase))
        print(f"{figures}, {reached} steps")
        if ended:
            return figures


def _start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Starts `ufork` in its own process group, which can be killed as one."""
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *arguments], stdout=file, stderr=file, start_new_session=True
        )


def _wait_for_the_moment(
    process: subprocess.Popen[bytes], phase: PhaseFolder, chance: random.Random, *, while_saving: bool
) -> None:
    """Waits for a few steps of this start, and then, if `while_saving`, until checkpoint files are being written."""
    reported = len(losses(phase))
    steps = chance.randint(1, 2 * RECIPE["train"]["checkpoint"]["every_steps"])
    while process.poll() is None and steps:
        time.sleep(0.02)
        steps -= (now := len(losses(phase))) != reported
        reported = now
    while while_saving and process.poll() is None and not list(phase.checkpoints.glob("*.unfinished/*/*")):
        time.sleep(0.0005)


def _valid_checkpoints(phase: PhaseFolder) -> set[str]:
    valid = set()
    for path in phase.checkpoints.glob("step-????????"):
        with contextlib.suppress(CheckpointError):
            verify(path, deep=True)
            valid.add(path.name)
    return valid


def losses(phase: PhaseFolder) -> list[tuple[float, float]]:
    """Losses of both tasks in every step that was reported."""
    return [(entry["loss/understanding"], entry["loss/generation"]) for entry in read_metrics(phase.metrics).entries]


def _weights(phase: PhaseFolder) -> bytes:
    return (phase.weights / "model.safetensors").read_bytes()


if __name__ == "__main__":
    main()
