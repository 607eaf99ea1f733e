"""The error about a rank that does not answer: who waited, and for what."""

from ufork.errors import PeerError
from ufork.parallel.layout import MeshCoordinate


def lost_peer(who: MeshCoordinate, waited_for: str, cause: str) -> PeerError:
    """Returns the error of rank `who`; `cause` is what the library or the clock says."""
    return PeerError(
        f"{who} waited for {waited_for}; a rank died, hung or raised, see its log ({cause.splitlines()[0]})",
        cause=cause,
    )
