"""The exception for input that cannot be used."""


class SkippedInput(Exception):
    """Input that cannot be used. It is skipped and counted under `reason` in the manifest."""

    def __init__(self, reason: str) -> None:
        """`reason`: what is wrong with the input, worded so that equal reasons can be counted."""
        super().__init__(reason)
        self.reason = reason
