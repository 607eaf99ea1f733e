"""Reports of training: JSON lines always, a progress bar on a terminal or plain lines elsewhere, and Weights & Biases.

StepResult of each step -> means over `log_every_steps` -> RUN/phases/NAME/metrics.jsonl, terminal or log, wandb
drawings, measurements of probes                        -> RUN/phases/NAME/{drawings/, probes/}, wandb

Only the leader reports; on other ranks telemetry does nothing. Training can continue without reports, so one that
cannot be written is an error in the log, and ends the run only after `MAX_FAILED_WRITES` of them.
"""

import json
import logging
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ufork.checkpoint.state import TrainState
from ufork.errors import StorageError
from ufork.files import make_folder, storage_errors, whole_file, write_whole
from ufork.report.metrics import read_metrics
from ufork.run_folder import PhaseFolder
from ufork.train.config import TrainConfig
from ufork.train.step import StepResult
from ufork.train.wandb_run import WandbRun
from ufork.vocabulary import Task

log = logging.getLogger(__name__)

MAX_FAILED_WRITES = 20
"""Reports and drawings that may be lost before the run ends."""
_ANOTHER_RUN_FOLDER = "another run.folder"


class Telemetry:
    """Collects the figures of steps and reports their means every `log_every_steps`."""

    def __init__(
        self,
        config: TrainConfig,
        folder: PhaseFolder,
        *,
        phase: str,
        run_config: dict[str, Any],
        is_leader: bool,
        start: TrainState | None = None,
    ):
        """Opens the reports that `config` asks for.

        Args:
            config: what to report, and how often.
            folder: of the phase.
            phase: name of the phase.
            run_config: resolved recipe, for wandb to record.
            is_leader: whether this rank reports.
            start: where training starts; reports of steps up to there are kept, later ones removed.

        Raises:
            StorageError: the folder cannot be written.
        """
        self.config, self.folder, self.phase, self.is_leader = config, folder, phase, is_leader
        start = start or TrainState()
        self._pending: list[StepResult] = []
        self._newest: dict[str, float] = {}
        self._bar: Any = None
        self._num_failed = 0
        self._cut: set[Path] = set()
        self._last = time.perf_counter()
        self._started = self._last - start.seconds
        if is_leader:
            self._open(run_config, start)

    def _open(self, run_config: dict[str, Any], start: TrainState) -> None:
        make_folder(self.folder.path, choose=_ANOTHER_RUN_FOLDER)
        for path in (self.folder.metrics, *sorted(self.folder.probes.glob("*.jsonl"))):
            _keep_reports_until(start.step, path)
        if sys.stderr.isatty():
            self._bar = tqdm(total=self.config.steps, initial=start.step, desc=self.phase, unit="step")
        self._wandb = WandbRun(self.config.wandb, self.folder.path, name=self.phase, run_config=run_config)

    def record(self, step: int, result: StepResult, learning_rate: float) -> None:
        """Takes the figures of step `step` (from 0), and reports when it is time; `close` reports the last ones.

        Raises:
            StorageError: too many reports could not be written.
        """
        if not self.is_leader:
            return
        self._pending.append(result)
        if self._bar:
            self._bar.update()
        self._newest = {"step": step + 1, "learning_rate": learning_rate}
        if (step + 1) % self.config.log_every_steps == 0:
            self._report()

    def _report(self) -> None:
        figures = self._newest | self._means()
        with self.tolerated():
            self._append(self.folder.metrics, {"phase": self.phase, **figures})
        self._wandb.log_figures(figures, step=int(figures["step"]))
        if self._bar:
            self._bar.set_postfix({key: f"{figures[key]:.3f}" for key in figures if key.startswith("loss/")})
        else:
            log.info("%s", _line(self.phase, figures, self.config.steps))

    def _append(self, path: Path, entry: Mapping[str, Any]) -> None:
        # After a failed write the file may end in an incomplete line: the line end in front separates this one.
        start = "\n" if path in self._cut else ""
        self._cut.add(path)
        with storage_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write(f"{start}{json.dumps(entry)}\n")
        self._cut.remove(path)

    @contextmanager
    def tolerated(self) -> Iterator[None]:
        """Logs a report, drawing or measurement for which a file cannot be written, or read.

        Raises:
            StorageError: too many of them have failed.
        """
        try:
            yield
        except (StorageError, OSError) as error:
            self._num_failed += 1
            if self._num_failed > MAX_FAILED_WRITES:
                raise
            log.error("%s; training continues (%d of at most %d times)", error, self._num_failed, MAX_FAILED_WRITES)

    def _means(self) -> dict[str, float]:
        now = time.perf_counter()
        results, self._pending = self._pending, []
        seconds, self._last = now - self._last, now
        real = sum(result.num_real_tokens for result in results)
        padding = sum(result.num_padding_tokens for result in results)
        return {
            "seconds": now - self._started,
            **_means_by_task("loss", [result.losses for result in results]),
            **_means_by_task("loss_factor", [result.loss_factors for result in results]),
            **_means_by_task("fork_gradient_norm", [result.fork_gradient_norms for result in results]),
            "gradient_norm": _mean([result.gradient_norm for result in results]),
            "tokens_per_s": real / seconds,
            "padding_share": padding / (real + padding),
            "memory_mb": _peak_memory_mb(),
            "skipped_steps": sum(not result.is_finite for result in results),
        }

    def show(self, step: int, grid: np.ndarray) -> None:
        """Saves a grid of drawings (uint8 [rows, columns, 3]) made after `step` steps.

        Raises:
            StorageError: too many reports could not be written.
        """
        path = self.folder.drawing(step)
        with self.tolerated():
            make_folder(path.parent)
            with whole_file(path) as file:
                Image.fromarray(grid).save(file, "PNG")
            self._wandb.log_image("drawings", path, step=step)

    def add_measurement(self, step: int, probe: str, figures: Mapping[str, float]) -> None:
        """Saves what a probe has measured after `step` steps.

        Raises:
            StorageError: too many reports could not be written.
        """
        path = self.folder.probe(probe)
        with self.tolerated():
            make_folder(path.parent)
            self._append(path, {"phase": self.phase, "step": step, **figures})
        self._wandb.log_figures({f"{probe}/{name}": value for name, value in figures.items()}, step=step)

    def close(self) -> None:
        """Reports the steps since the last report, and ends the bar and the wandb run."""
        if not self.is_leader:
            return
        if self._pending:
            self._report()
        if self._bar:
            self._bar.close()
        self._wandb.finish()


def _keep_reports_until(step: int, path: Path) -> None:
    """Removes reports of steps that will be taken again, and damaged lines; a damaged file is kept beside it."""
    earlier = read_metrics(path, limited=False)
    if earlier.fault:
        damaged = path.replace(path.with_name(f"{path.name}.damaged"))
        log.warning("%s; the file is kept as %s", earlier.fault, damaged.name)
    kept = [entry for entry in earlier.entries if entry["step"] <= step]
    if len(kept) < len(earlier.entries):
        last = earlier.entries[-1]["step"]
        log.info("%s: removed the reports up to step %d, since training starts after step %d", path, last, step)
    write_whole(path, "".join(f"{json.dumps(entry)}\n" for entry in kept), durable=True, choose=_ANOTHER_RUN_FOLDER)


def _means_by_task(name: str, figures: list[dict[Task, float]]) -> dict[str, float]:
    return {f"{name}/{task}": _mean([of_step[task] for of_step in figures]) for task in figures[0]}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _peak_memory_mb() -> float:
    """Peak memory of the device where this process uses CUDA, of the process elsewhere."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _line(phase: str, figures: dict[str, float], steps: int) -> str:
    losses = " ".join(f"{key[5:]} {value:.4f}" for key, value in figures.items() if key.startswith("loss/"))
    return (
        f"{phase} {figures['step']}/{steps}  {losses}  norm {figures['gradient_norm']:.2f}"
        f"  lr {figures['learning_rate']:.2e}  {figures['tokens_per_s']:,.0f} tokens/s"
        f"  padding {figures['padding_share']:.1%}  {figures['memory_mb']:,.0f} MB  {figures['seconds']:.0f} s"
    )
