"""A CPU's stand-in for CUDA graphs, with their rules.

While it is captured, a step changes nothing. A replay repeats the operations on the tensors of the capture and writes
results where the capture had them. No Python of the step runs again, and numbers that it used are constants.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ufork.infer.steps import GraphSteps


class RecordedGraph(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = []
        self.before = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info and argument.alias_info.is_write:
                storage = value.untyped_storage()
                self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        out = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, tensors_in(out)))
        return out

    def __exit__(self, *exception):
        super().__exit__(*exception)
        for storage, contents in self.before.values():
            storage.copy_(contents)

    def replay(self):
        for func, args, kwargs, outs in self.operations:
            for new, out in zip(tensors_in(func(*args, **kwargs)), outs, strict=True):
                if new.data_ptr() != out.data_ptr():
                    out.copy_(new)


class RecordedSteps(GraphSteps):
    """GraphSteps on a CPU."""

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.num_captures = 0
        self.num_replays = 0

    def _capture(self, step):
        with RecordedGraph() as graph:
            step()
        self.num_captures += 1
        replay = graph.replay

        def counted():
            self.num_replays += 1
            replay()

        graph.replay = counted
        return graph

    def _free(self, graph):
        graph.operations.clear()

    def _side_stream(self):
        return contextlib.nullcontext()


def tensors_in(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
