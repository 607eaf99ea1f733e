"""Ranks for tests: forked from one warm server, which imports torch and DeepSpeed once for the whole session.

Write `run_x(rank_env, *args)` at the top of a test module (it is imported by name on the ranks) and call
`run_on_ranks(run_x, 4, ...)` from `test_x`.
"""

import warnings
from collections.abc import Callable
from typing import Any

from pipelines.launch.local_ranks import RankFailedError, start_local_ranks
from pipelines.launch.ranks import PRELOADED_MODULES, process_context
from ufork.parallel.rank_environment import RankEnvironment


def run_on_ranks(function: Callable[..., Any], num_ranks: int, *args: Any, timeout_seconds: float = 180) -> list[Any]:
    """Returns what `function(rank_env, *args)` returned on each of `num_ranks` new processes, in the order of ranks.

    Tensors arrive as copies. The first failed rank's error is raised here with its type, and its traceback as a note;
    PeerError shows the stacks of ranks that have not finished after `timeout_seconds`.
    """
    context = process_context(("pytest", *PRELOADED_MODULES))
    try:
        return start_local_ranks(
            _without_warnings_of_others, num_ranks, function, *args, context=context, timeout_seconds=timeout_seconds
        )
    except RankFailedError as error:
        if error.cause is not None:
            raise error.cause from error
        raise


def _without_warnings_of_others(rank_env: RankEnvironment, function: Callable[..., Any], *args: Any) -> Any:
    """Keeps the output of a failing rank readable; pyproject.toml does the same for the tests' own process."""
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(torch|deepspeed)\b")
    return function(rank_env, *args)
