"""An exception on its way to another process.

    exception -> Failure.of -> pickle -> Failure.error: the same exception with its traceback as a note

An error of ufork's is described by its message alone, which is made for users.
"""

import multiprocessing
import os
import pickle
import time
import traceback
from dataclasses import dataclass

from ufork.errors import UforkError, system_error


@dataclass(frozen=True)
class Failure:
    """An exception that ended a process; can always be pickled."""

    seconds: float
    """Time of the exception, on the machine's monotonic clock, which all its processes share."""
    description: str
    """The message of an error of ufork's; of any other exception type, message and traceback."""
    pickled_error: bytes | None
    """The pickled exception; None when it cannot be pickled or restored."""

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Packs `error`, as raised in this process; what the operating system refused as an error for users."""
        seconds = time.monotonic()
        text = "".join(traceback.format_exception(error))
        error = system_error(error) or error
        description = str(error) if isinstance(error, UforkError) else f"{type(error).__name__}: {error}\n{text}"
        try:
            error.add_note(f"as raised in {multiprocessing.current_process().name} (pid {os.getpid()}):\n{text}")
            pickled = pickle.dumps(error)
            pickle.loads(pickled)  # an exception whose constructor takes other arguments than it kept fails only here
        except Exception:
            pickled = None
        return cls(seconds, description, pickled)

    @property
    def error(self) -> BaseException | None:
        """The exception as it was raised; None where only its description could be sent."""
        return pickle.loads(self.pickled_error) if self.pickled_error else None

    def to_raise(self) -> Exception:
        """The exception to raise in the parent: the original one, or a RuntimeError with its description.

        SystemExit and its like become RuntimeErrors, since they would end the parent without a message.
        """
        error = self.error
        return error if isinstance(error, Exception) else RuntimeError(self.description)
