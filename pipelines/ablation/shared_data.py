"""The shards and tokenizers of a suite, and the detector that scores drawings: made once and read by all trials.

FOLDER/data: `ufork prepare`, `ufork tokenizer text`, `fit` and `encode`, `ufork evaluate --only-detector`
             -> FOLDER/data/prepared.yaml when all are done
run folder of a trial: shards, codes, tokenizer, detector -> links to those of FOLDER/data
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.ablation.suite import DATA_RUN, Suite
from ufork.errors import ConfigError
from ufork.files import make_folder, storage_errors, write_whole
from ufork.run_folder import RunFolder
from ufork.strict_yaml import dump_yaml

VERBS = (
    ("prepare",),
    ("tokenizer text",),
    ("tokenizer fit",),
    ("tokenizer encode",),
    ("evaluate", "--only-detector"),
)
"""Verbs and their options, in order."""
LINKED = ("shards", "codes", "tokenizer", "detector")
"""Folders inside a run's that trials share."""

RunVerb = Callable[..., None]
"""Runs a verb, with options, on the recipe in a run folder."""


def prepare_data(suite: Suite, run_verb: RunVerb) -> None:
    """Makes shards, tokenizers and detector, unless they are finished for the same recipe.

    Raises:
        UforkError: a verb fails.
        StorageError: the folder cannot be written.
    """
    if is_prepared(suite):
        return
    run = suite.data.run_folder
    make_folder(run.path)
    write_whole(run.recipe, suite.data.to_yaml())
    for verb in VERBS:
        run_verb(run, *verb)
    write_whole(run.prepared, made_for(suite), durable=True)


def require_prepared(suite: Suite) -> None:
    """Checks that shards and tokenizers are finished.

    Raises:
        ConfigError: they are not.
    """
    if not is_prepared(suite):
        raise ConfigError(
            f"{suite.data.run_folder.path}: shards and tokenizers of this suite are not finished there; run `ufork"
            " ablate SUITE --prepare` first"
        )


def is_prepared(suite: Suite) -> bool:
    """Whether shards and tokenizers are finished for the suite's recipe."""
    path = suite.data.run_folder.prepared
    return path.exists() and path.read_text(encoding="utf-8") == made_for(suite)


def made_for(suite: Suite) -> str:
    """Returns the sections of the recipe that decide shards, tokenizers and detector, as YAML."""
    sections: dict[str, Any] = {section: True for section in ("prepare", "vision", "text")}
    sections |= {"run": {"seed"}, "evaluate": {"scenes": {"detector"}}}
    return dump_yaml(suite.data.model_dump(mode="json", include=sections))


def link_data(suite: Suite, run: RunFolder) -> None:
    """Links the folders with data into the run folder of a trial.

    Raises:
        StorageError: the folder cannot be written.
    """
    make_folder(run.path)
    for name in LINKED:
        make_folder(suite.data.run_folder.path / name)  # a link to nothing cannot be written through
        link = run.path / name
        with storage_errors(link, choose="another run.folder"):
            if not link.is_symlink():
                link.symlink_to(Path("..") / DATA_RUN / name, target_is_directory=True)
