"""What a run reports while it trains: JSON lines always, a bar on a terminal or plain lines elsewhere, and wandb.

Only the leader reports; the other ranks have a telemetry that says nothing.
"""

import json
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ufork.checkpoint.folder import TrainState
from ufork.errors import StorageError
from ufork.train.config import TrainConfig
from ufork.train.step import StepResult

log = logging.getLogger(__name__)


class Telemetry:
    """Collects the figures of steps and writes their means every `log_every_steps`."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        *,
        stage: str,
        run_config: dict[str, Any],
        speaks: bool,
        start: TrainState | None = None,
    ):
        """Opens what `config` names in `folder`; from `start` on, what was reported up to there is kept."""
        self.config, self.folder, self.stage, self.speaks = config, folder, stage, speaks
        start = start or TrainState()
        self._pending: list[StepResult] = []
        self._newest: dict[str, float] = {}
        self._file: TextIO | None = None
        self._wandb: Any = None
        self._bar: Any = None
        self._last = time.perf_counter()
        self._started = self._last - start.seconds
        if speaks:
            self._open(run_config, start)

    def _open(self, run_config: dict[str, Any], start: TrainState) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / "metrics.jsonl"
            draft = path.with_suffix(".jsonl.new")  # a kill at any moment leaves the old lines or the kept ones
            draft.write_text("".join(_lines_up_to(path, start.step)), encoding="utf-8")
            self._file = draft.replace(path).open("a", encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"{self.folder}: cannot be written ({error.strerror}); choose another run.folder"
            ) from None
        if sys.stderr.isatty():
            self._bar = tqdm(total=self.config.steps, initial=start.step, desc=self.stage, unit="step")
        if self.config.wandb.mode != "disabled":
            import wandb  # a second to import, and not everybody's

            self._wandb = wandb.init(
                project=self.config.wandb.project,
                name=self.stage,
                dir=str(self.folder),
                mode=self.config.wandb.mode,
                config=run_config,
                settings=wandb.Settings(silent=True),
            )

    def record(self, step: int, result: StepResult, learning_rate: float) -> None:
        """Takes the figures of step `step` (from 0), and reports when it is time; the last ones by `close`.

        Raises:
            StorageError: the figures cannot be written.
        """
        if not self.speaks:
            return
        self._pending.append(result)
        if self._bar:
            self._bar.update()
        self._newest = {"step": step + 1, "learning_rate": learning_rate}
        if (step + 1) % self.config.log_every_steps == 0:
            self._report()

    def _report(self) -> None:
        self._write({"stage": self.stage, **self._newest, **self._means()})

    def _means(self) -> dict[str, float]:
        now = time.perf_counter()
        results, self._pending = self._pending, []
        seconds, self._last = now - self._last, now
        real = sum(result.num_real_tokens for result in results)
        padding = sum(result.num_padding_tokens for result in results)
        losses = {f"loss/{task}": _mean([result.losses[task] for result in results]) for task in results[0].losses}
        return {
            "seconds": now - self._started,
            **losses,
            "gradient_norm": _mean([result.gradient_norm for result in results]),
            "tokens_per_s": real / seconds,
            "padding_share": padding / (real + padding),
            "memory_mb": _peak_memory_mb(),
            "skipped_steps": sum(not result.is_finite for result in results),
        }

    def _write(self, figures: dict[str, Any]) -> None:
        assert self._file
        try:
            self._file.write(json.dumps(figures) + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(f"{self.folder}/metrics.jsonl: cannot be written ({error.strerror})") from None
        if self._wandb:
            self._wandb.log({key: value for key, value in figures.items() if key != "stage"}, step=figures["step"])
        if self._bar:
            self._bar.set_postfix({key: f"{figures[key]:.3f}" for key in figures if key.startswith("loss/")})
        else:
            log.info("%s", _line(figures, self.config.steps))

    def show(self, step: int, grid: np.ndarray) -> None:
        """Saves a grid of drawings (uint8 [rows, columns, 3]) made after `step` steps."""
        path = self.folder / "drawings" / f"step-{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid).save(path)
        if self._wandb:
            import wandb

            self._wandb.log({"drawings": wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """Reports what is pending, and ends bar, file and wandb run."""
        if self._pending:
            self._report()
        for part, end in ((self._bar, "close"), (self._file, "close"), (self._wandb, "finish")):
            if part:
                getattr(part, end)()


def _lines_up_to(path: Path, step: int) -> list[str]:
    """Of an earlier start, what was reported of steps that need not be taken again."""
    if not step or not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _peak_memory_mb() -> float:
    """The device's peak on CUDA, the process's elsewhere."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _line(figures: dict[str, Any], steps: int) -> str:
    losses = " ".join(f"{key[5:]} {value:.4f}" for key, value in figures.items() if key.startswith("loss/"))
    return (
        f"{figures['stage']} {figures['step']}/{steps}  {losses}  norm {figures['gradient_norm']:.2f}"
        f"  lr {figures['learning_rate']:.2e}  {figures['tokens_per_s']:,.0f} tokens/s"
        f"  padding {figures['padding_share']:.1%}  {figures['memory_mb']:,.0f} MB  {figures['seconds']:.0f} s"
    )
