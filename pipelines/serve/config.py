"""Address and limits of a server."""

from pydantic import Field, PositiveFloat, PositiveInt

from ufork.config import Config


class ServeConfig(Config):
    """Where a server listens, and what it accepts."""

    host: str = "127.0.0.1"
    """Name or address to listen on; the default is reached from this machine only."""
    port: int = Field(default=8000, ge=0, le=65_535)
    """Port to listen on; 0 takes a free one."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names under which browsers may reach the server, such as a proxy's."""
    max_waiting: PositiveInt = 32
    """Requests that may wait for others to end; each image of a prompt is one."""
    max_images: int = Field(default=8, ge=1, le=64)
    """Most images per prompt."""
    max_image_mib: PositiveFloat = 16
    """Largest image file to ask about, MiB."""
    max_image_megapixels: PositiveFloat = 50
    """Largest image to ask about, in millions of pixels."""
    max_seconds: PositiveFloat = 120
    """Longest time from a request to its end, with waiting."""

    @property
    def max_image_bytes(self) -> int:
        """Largest image file in bytes."""
        return int(self.max_image_mib * 2**20)
