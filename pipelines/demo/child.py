"""A verb as a child process of the demo: `python -m pipelines.demo.child VERB ...`, with a pipe as standard input.

The pipe ends when the demo ends, however that does, and the verb is then killed: no verb works on in a run folder
that its demo has left. Its own child processes die with it (`ufork.processes.child`).
"""

import os
import sys
import threading

from pipelines import cli


def _exit_with_demo() -> None:
    os.read(sys.stdin.fileno(), 1)  # not sys.stdin.read(), whose lock would abort the exit of this process
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_exit_with_demo, daemon=True).start()
    sys.exit(cli.main())
