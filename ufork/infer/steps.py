"""Runs the steps of drawing or answering: one after the other, or on CUDA as replays of one captured graph.

    step (a function without arguments that reads and writes tensors) -> steps_on(device) -> run: num_steps times

A step of decoding is hundreds of kernels of a few microseconds, which the host cannot launch as fast as a GPU runs
them. A CUDA graph launches them all at once (NVIDIA, "CUDA Graphs"; `torch.cuda.CUDAGraph`). The step is captured
explicitly and not by `torch.compile`, since it has one shape for a whole batch of drawings: capturing needs no compiler
and takes about the host's time for one step. What it demands is what `is_static` says: a replay repeats kernels and
addresses, no Python.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from ufork.errors import first_line

log = logging.getLogger(__name__)

WARM_UP_STEPS = 3
"""Steps run before a capture, so that libraries have initialised themselves and chosen their kernels."""
FEWEST_REPLAYS = 8
"""Replays that are worth a capture."""
STEPS_PER_CHECK = 8
"""Replays between two looks at whether all sequences have ended: each look waits for the device."""

Step = Callable[[], None]


def never() -> bool:
    """Stands for steps that do not end early."""
    return False


class Steps(Protocol):
    """How steps are run."""

    is_static: bool
    """Whether a step has to be the same at every position: equal shapes and addresses, no state of Python's."""

    def run(self, step: Step, num_steps: int, has_ended: Callable[[], bool] = never) -> None:
        """Calls `step` `num_steps` times, fewer once `has_ended`; a few steps may follow the end."""


class EagerSteps:
    """Calls each step, and `after_step` after it."""

    def __init__(self, *, is_static: bool = False, after_step: Step | None = None):
        self.is_static, self.after_step = is_static, after_step

    def run(self, step: Step, num_steps: int, has_ended: Callable[[], bool] = never) -> None:
        """Calls `step` `num_steps` times; stops as soon as `has_ended`."""
        for _ in range(num_steps):
            if has_ended():
                return
            step()
            if self.after_step:
                self.after_step()


class GraphSteps:
    """Captures a step as a CUDA graph and replays it: one launch a step.

    After the first capture that fails, steps are called one by one. A failed capture leaves the process's CUDA random
    generator unusable, so this is for programs that only use a model, and not for training.
    """

    is_static = True

    def __init__(self, device: torch.device):
        self.device = device
        self.can_capture = True
        self._stream: torch.cuda.Stream | None = None
        """One for all batches: cuBLAS keeps tens of megabytes of workspace for each stream that it has seen."""

    def run(self, step: Step, num_steps: int, has_ended: Callable[[], bool] = never) -> None:
        """Calls `step` a few times, then replays it; `has_ended` is looked at every STEPS_PER_CHECK replays."""
        captures = self.can_capture and num_steps >= WARM_UP_STEPS + FEWEST_REPLAYS
        num_eager = WARM_UP_STEPS if captures else num_steps
        with self._side_stream():
            for _ in range(num_eager):
                if has_ended():
                    return
                step()
            if captures:
                self._replay(step, num_steps - num_eager, has_ended)

    def _replay(self, step: Step, num_steps: int, has_ended: Callable[[], bool]) -> None:
        with self._captured(step) as replay:
            for number in range(num_steps):
                if number % STEPS_PER_CHECK == 0 and has_ended():
                    return
                replay()

    @contextlib.contextmanager
    def _captured(self, step: Step) -> Iterator[Step]:
        """Yields what replays `step`, or `step` itself where it cannot be captured; frees the graph's memory."""
        graph = self._try_to_capture(step)
        if graph is None:  # nothing of the step has run, so it can still be called
            yield step
            return
        try:
            yield graph.replay
        finally:
            self._free(graph)

    def _try_to_capture(self, step: Step) -> torch.cuda.CUDAGraph | None:
        try:
            return self._capture(step)
        except RuntimeError as error:
            self.can_capture = False
            reason = first_line(error.__context__ or error)  # what broke the capture, before its end did
            log.warning("CUDA graph: a step cannot be captured (%s); steps are launched kernel by kernel", reason)
            return None

    def _capture(self, step: Step) -> torch.cuda.CUDAGraph:
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            stream = torch.cuda.current_stream()
            # thread_local: other threads of the program may use CUDA meanwhile
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                step()
        except RuntimeError:
            # before torch 2.13 capture_end raises first, and empty_cache then asserts (pytorch#180395)
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            raise
        return graph

    def _free(self, graph: torch.cuda.CUDAGraph) -> None:
        torch.cuda.current_stream().synchronize()  # the graph's memory is in use until its last replay is done
        graph.reset()

    @contextlib.contextmanager
    def _side_stream(self) -> Iterator[None]:
        """Runs on a stream of its own, since the default stream cannot be captured."""
        with torch.cuda.device(self.device):
            self._stream = self._stream or torch.cuda.Stream()
            self._stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(self._stream):
                    yield
            finally:
                torch.cuda.current_stream().wait_stream(self._stream)


def steps_on(device: torch.device) -> Steps:
    """Returns how steps run fastest on `device`."""
    return GraphSteps(device) if device.type == "cuda" else EagerSteps()
