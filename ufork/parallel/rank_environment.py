"""The environment of one rank: its number, and where the ranks rendezvous. Importable without torch."""

from dataclasses import dataclass, field

SECRET_VARIABLE = "UFORK_JOB_SECRET"
"""Environment variable by which a launcher other than ufork's hands the job's secret to its ranks."""


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
    launcher_serves_store: bool = False
    """Whether the launcher serves the job's store there in place of rank 0, as torchrun does."""
    secret: str = field(default="", repr=False)
    """Known to the ranks of the job only; empty if their launcher made none."""

    def __post_init__(self) -> None:
        """Asserts what every launcher must ensure."""
        assert 0 <= self.local_rank <= self.rank < self.world_size, self
