"""The environment of one rank: its number, and where the ranks rendezvous. Importable without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RankEnvironment:
    """One rank of a job, and where the ranks rendezvous; made by the program that starts the ranks."""

    rank: int
    """Number of the rank in the job, from 0."""
    world_size: int
    """Ranks in the job."""
    local_rank: int
    """Number of the rank on its machine, from 0; index of its device."""
    master_address: str
    """Host on which rank 0 listens."""
    master_port: int

    def __post_init__(self) -> None:
        """Asserts what every launcher must ensure."""
        assert 0 <= self.local_rank <= self.rank < self.world_size, self
