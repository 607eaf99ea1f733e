"""What can go wrong by a user's input, the machine or a peer. Mistakes of our own stay assertions.

Every message names the file, key or value at fault, what was expected, and what to do. Entry programs print the message
of a `UforkError` without a traceback and exit with its `exit_code`.
"""


class UforkError(Exception):
    """Base of all errors that a user can act on."""

    exit_code = 1


class ConfigError(UforkError):
    """A recipe, an override or a command-line value is unknown, of the wrong type or out of range."""

    exit_code = 2


class ShardError(UforkError):
    """A shard, its index or its manifest is missing, truncated or not what the manifest says."""


class SampleError(UforkError):
    """One sample cannot be used: undecodable image, empty text, longer than the token budget.

    Attributes:
        reason: what is wrong and what to do, in words that are the same for all such samples: they are counted by it.
        detail: what was found in this sample.
        sample: its id, or shard and key; empty where only its contents are known.
    """

    def __init__(self, reason: str, *, detail: str = "", sample: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail, self.sample = reason, detail, sample

    def __str__(self) -> str:
        return (f"{self.sample}: " if self.sample else "") + self.reason + (f" ({self.detail})" if self.detail else "")


class LoaderError(UforkError):
    """A loader process died or hung."""


class WorkerError(UforkError):
    """A worker process that makes shards died."""


class InputError(UforkError):
    """A collection that shards are to be made from is missing, unreadable or not of the format that was named."""


class TokenizerError(UforkError):
    """A text or image tokenizer folder is missing, incomplete or does not fit the model."""


class CheckpointError(UforkError):
    """Weights or their config are missing, damaged, or of another shape than the model."""


class StorageError(UforkError):
    """A folder cannot be written or the disk is full."""


class MachineError(UforkError):
    """This machine lacks something that ufork cannot do without."""


class NonFiniteError(UforkError):
    """Loss or gradients were NaN or infinite in more steps than the recipe tolerates."""


class PeerError(UforkError):
    """Another rank died, hung or raised."""


class ClusterError(UforkError):
    """Slurm is not here, or refuses what it was asked for."""


class StoppedError(UforkError):
    """A signal asked the job to stop; what it had is saved, and the same command goes on from there."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later
