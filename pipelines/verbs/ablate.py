"""Trains and evaluates the arms of a suite, each with every seed, and writes tables and figures of their scores.

A suite is a YAML file that declares arms by the values in which they differ from a recipe; docs/study.md describes it.
A trial is one arm with one seed. Data and tokenizers are made once, in RUNS/NAME/data, where RUNS is the recipe's
run.folder. Each trial has a run folder RUNS/NAME/ARM-seedN, and leaves one small file in the folder of results. A trial
whose file exists is not run again; interrupted or killed, the same command resumes. Tables and figures are made from
these files alone.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.terminal import show
from pipelines.text_arguments import whole_number

if TYPE_CHECKING:
    from pipelines.ablation.suite import Suite, Trial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the suite, the folder of results, and what to do with the suite."""
    parser.add_argument("suite", type=Path, metavar="SUITE", help="suite, such as those in pipelines/suites")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="new value for a key of all recipes, such as train.steps=200"
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="folder of result files, tables and figures (default: RUNS/NAME/results)",
    )
    parser.add_argument(
        "--parallel", type=whole_number, metavar="N", help="trials that run at the same time (default: the suite's)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prepare", action="store_true", help="only make shards, tokenizers and the detector")
    what.add_argument("--trial", type=whole_number, metavar="N", help="only run trial N, counted from 0")
    what.add_argument("--table", action="store_true", help="only write tables and figures of the results that exist")
    what.add_argument("--submit", action="store_true", help="run the suite on a Slurm cluster, one task per trial")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="option of sbatch for the jobs of --submit, such as partition=gpu",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs, submits or shows a suite.

    Raises:
        UforkError: a value is at fault, arms are not matched, a result belongs to another recipe, or a trial failed.
    """
    from pipelines.ablation.cost import cost_of, require_matched
    from pipelines.ablation.outcome import missing_trials
    from pipelines.ablation.suite import read_suite

    suite = read_suite(arguments.suite, arguments.overrides)
    require_matched({arm: cost_of(recipe) for arm, recipe in suite.recipes.items()}, suite.config.matched)
    results = arguments.results or suite.results
    missing = missing_trials(suite, results)
    if arguments.table:
        _show(suite, results)
    elif arguments.submit:
        _submit(suite, missing, results, arguments)
    else:
        _run(suite, missing, results, arguments)


def _run(suite: "Suite", missing: "list[Trial]", results: Path, arguments: argparse.Namespace) -> None:
    from pipelines.ablation.run import SuiteRun
    from pipelines.ablation.shared_data import require_prepared

    only = arguments.trial
    parallel = _parallel(suite, arguments) if only is None else 1
    this = SuiteRun(suite, results=results, parallel=parallel, environment=os.environ, out=sys.stdout)
    if only is not None:
        trial = _trial(suite, only)
        require_prepared(suite)
        this.run([trial] if trial in missing else [])
        return
    if arguments.prepare or missing:
        this.prepare()
    if arguments.prepare:
        return
    num_trials = len(suite.trials)
    print(f"{suite.config.name}: {num_trials - len(missing)} of {num_trials} results exist", flush=True)
    this.run(missing)
    _show(suite, results)


def _show(suite: "Suite", results: Path) -> None:
    from pipelines.ablation.outcome import results_of
    from pipelines.ablation.tables import write_tables

    show(write_tables(suite, results_of(suite, results), results))
    show(f"results, table and figures: {results}")


def _submit(suite: "Suite", missing: "list[Trial]", results: Path, arguments: argparse.Namespace) -> None:
    from pipelines.ablation.array import Array, submit

    if not missing:
        show(f"{suite.config.name}: all results exist; --table shows them")
        return
    array = Array(
        suite=suite,
        path=arguments.suite,
        overrides=arguments.overrides,
        results=results,
        parallel=_parallel(suite, arguments),
        options=arguments.sbatch,
    )
    jobs = " ".join(map(str, submit(array, missing, os.environ)))
    show(f"{len(missing)} trials: jobs {jobs}\nlogs:    {suite.folder}/slurm/logs\ncancel:  scancel {jobs}")


def _parallel(suite: "Suite", arguments: argparse.Namespace) -> int:
    from ufork.errors import ConfigError

    if arguments.parallel is not None and arguments.parallel < 1:
        raise ConfigError(f"--parallel {arguments.parallel}: at least one trial runs at a time")
    return arguments.parallel or suite.config.parallel


def _trial(suite: "Suite", number: int) -> "Trial":
    from ufork.errors import ConfigError

    if not 0 <= number < len(suite.trials):
        raise ConfigError(f"--trial {number}: the suite's trials are 0 to {len(suite.trials) - 1}")
    return suite.trials[number]
