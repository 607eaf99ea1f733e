"""torch.compile of pure functions on activations: no module, no parameter, so nothing that ZeRO-3 hooks into.

Packed sequences differ in length. Their first dimension is therefore declared variable before the first call, so that
one compilation serves all; other dimensions are sizes of the model and become constants of the generated code.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def compiled(function: Callable[..., Any], *, variable_dims: int = 1) -> Callable[..., Any]:
    """Returns `function` compiled for tensors whose first `variable_dims` dimensions vary from call to call.

    Other dtypes, or other needs of gradients, compile it anew; after eight times torch runs it uncompiled.
    """
    fast = torch.compile(function)

    def call(*tensors: Tensor) -> Any:
        for tensor in tensors:
            for dim in range(min(variable_dims, tensor.dim())):
                torch._dynamo.maybe_mark_dynamic(tensor, dim)
        return fast(*tensors)

    return call
