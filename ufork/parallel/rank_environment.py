"""Where one rank of a job stands. Free of torch, so that launchers and layouts can speak of ranks cheaply."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RankEnvironment:
    """One rank of a job and where all ranks meet; who starts the ranks makes it, and nobody changes it."""

    rank: int
    """Counts from 0 over the job."""
    world_size: int
    """Ranks in the job."""
    local_rank: int
    """Counts from 0 on each machine; the index of the rank's device there."""
    master_address: str
    """Host on which rank 0 listens."""
    master_port: int

    def __post_init__(self) -> None:
        """Holds what every launcher must keep."""
        assert 0 <= self.local_rank <= self.rank < self.world_size, self
