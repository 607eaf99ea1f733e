"""Committed results belong to their suites as they are, and table and figures are made from them alone."""

from pathlib import Path

from pipelines.ablation.outcome import missing_trials, results_of
from pipelines.ablation.suite import read_suite
from pipelines.ablation.tables import FORK_DEPTH, LAYERS, LEARNING_CURVES, TABLE, write_tables

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs/study"


def test_table_and_figures_are_regenerated_from_committed_results(tmp_path, subtests):
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        with subtests.test(folder.name):
            suite = read_suite(ROOT / "pipelines/suites" / f"{folder.name}.yaml")
            results = results_of(suite, folder)
            assert (
                len(results)
                == len(list(folder.glob("*.json")))
                == len(suite.trials) - len(missing_trials(suite, folder))
            )
            write_tables(suite, results, tmp_path / folder.name)
            assert {path.name for path in (tmp_path / folder.name).iterdir()} == {
                TABLE,
                LEARNING_CURVES,
                FORK_DEPTH,
                LAYERS,
            }
            assert all(result.arm in (tmp_path / folder.name / TABLE).read_text() for result in results)
