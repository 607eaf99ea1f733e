"""Builds modules whose weights will be read: nothing is initialised at random before."""

from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode


class WithoutInitialization(TorchFunctionMode):
    """Skips `torch.nn.init`: on meta tensors it does nothing, and imports torch._dynamo, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
