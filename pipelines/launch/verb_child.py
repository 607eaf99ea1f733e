"""A verb as a child of another: `python -m pipelines.launch.verb_child VERB ...`, with a pipe as standard input.

The pipe ends when the parent ends, however that does, and the verb is then killed: no verb works on in a run folder
that its parent has left. Its own child processes die with it (`ufork.processes.child`).
"""

import os
import sys
import threading

from pipelines import cli


def _exit_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not sys.stdin.read(), whose lock would abort the exit of this process
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    sys.exit(cli.main())
