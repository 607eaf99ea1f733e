"""The fused kernels of `liger-kernel` (arXiv 2410.10989) for what surrounds matrix products, behind ufork's signatures.

Each is one kernel forward and one backward where plain torch launches five to eight. They write over their arguments
and over what they have saved, which nothing else in a decoder layer reads. Not used are liger's linear cross-entropy
(see `cross_entropy.py`) and its RMSNorm: on an H200 torch's takes 0.054 ms forward and backward where liger's takes
0.069, and a third of the host's time (docs/gpu.md).
"""

import importlib
from types import ModuleType

from torch import Tensor


def import_liger() -> ModuleType:
    """Returns liger's operations; raises ImportError without `liger-kernel` or the triton that it needs."""
    return importlib.import_module("liger_kernel.ops")


def liger_rotate(query_THW: Tensor, key_TGW: Tensor, cos_TW: Tensor, sin_TW: Tensor) -> tuple[Tensor, Tensor]:
    """`rotate`, in place; liger takes a batch and the heads before the tokens."""
    query, key = (x.transpose(0, 1)[None] for x in (query_THW, key_TGW))
    query, key = import_liger().LigerRopeFunction.apply(query, key, cos_TW[None], sin_TW[None])
    return query[0].transpose(0, 1), key[0].transpose(0, 1)


def liger_gated(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """`gated`; its backward pass writes over both arguments."""
    return import_liger().LigerSiLUMulFunction.apply(gate_TF, up_TF)
