"""The word of whoever makes samples that an input cannot be used."""


class SkippedInput(Exception):
    """An input that cannot be used; it is counted under `reason` in the manifest and left out."""

    def __init__(self, reason: str) -> None:
        """`reason`: what is wrong with it, in the words under which such inputs are counted together."""
        super().__init__(reason)
        self.reason = reason
