"""Reporting to Weights & Biases, which never ends training: after its first error nothing more is sent to it."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ufork.train.config import WandbConfig

log = logging.getLogger(__name__)


class WandbRun:
    """A run of Weights & Biases; does nothing in mode `disabled`, or once it has failed."""

    def __init__(self, config: WandbConfig, folder: Path, *, name: str, run_config: Mapping[str, Any]):
        """Starts the run; its own files go into `folder`."""
        self._run: Any = None
        if config.mode != "disabled":
            self._try(lambda: self._start(config, folder, name, run_config))

    def _start(self, config: WandbConfig, folder: Path, name: str, run_config: Mapping[str, Any]) -> None:
        import wandb  # takes a second to import

        self._run = wandb.init(
            project=config.project,
            name=name,
            dir=str(folder),
            mode=config.mode,
            config=dict(run_config),
            settings=wandb.Settings(silent=True),
        )

    def log_figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Sends numbers by name."""
        if self._run:
            self._try(lambda: self._run.log(dict(figures), step=step))

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Sends an image file."""
        if self._run:
            self._try(lambda: self._log_image(name, path, step))

    def _log_image(self, name: str, path: Path, step: int) -> None:
        import wandb

        self._run.log({name: wandb.Image(str(path))}, step=step)

    def finish(self) -> None:
        """Ends the run."""
        if self._run:
            self._try(lambda: self._run.finish())

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # wandb raises many kinds, without a home folder even KeyError
            self._run = None
            log.warning(
                "wandb failed, nothing more is reported to it (train.wandb.mode=disabled avoids this): %r", error
            )
