"""The exception for input that cannot be used.

For every entry that it meets, a reader yields either a record or what was skipped; it leaves nothing out. Kept and
skipped records therefore add up to the entries (`data_prep/report/selection.py`).
"""


class SkippedInput(Exception):
    """Input that cannot be used. It is skipped and counted under `reason` in the manifest."""

    def __init__(self, reason: str) -> None:
        """Takes the reason: what is wrong and, after a semicolon, what the user can do about it, if anything.

        It has the same words for all such input, since it is counted by them.
        """
        super().__init__(reason)
        self.reason = reason
