"""The error about a rank that does not answer: who waited, and for what; `roll_call.py` adds which rank is lost."""

import torch.distributed as dist

from ufork.errors import PeerError, first_line
from ufork.parallel.layout import MeshCoordinate


def lost_peer(who: MeshCoordinate, waited_for: str, cause: str) -> PeerError:
    """Returns the error of rank `who`; `cause` is what the library or the clock says."""
    return PeerError(
        f"{who} waited for {waited_for}; a rank died, hung or raised, see its log ({first_line(cause)})",
        cause=cause,
    )


def is_about_a_peer(error: BaseException) -> bool:
    """Whether `error` is about another rank; torch and DeepSpeed raise some of these as RuntimeError."""
    if isinstance(error, RuntimeError) and not isinstance(error, dist.DistError):
        return "gloo" in str(error) or "NCCL" in str(error)
    return isinstance(error, (PeerError, dist.DistError))
