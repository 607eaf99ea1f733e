"""Pictures between bytes and pixels: one at a time for the whole server, unfinished ones at a bounded rate.

    codes of a drawing -> finished: PNG             codes so far -> unfinished: PNG, or None while it is too early
    bytes of an uploaded file -> read_upload: uint8 [image_px, image_px, 3]

Memory and computing power that pictures take do not grow with the number of requests.
"""

import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

import numpy as np
from PIL import Image

from ufork.errors import SampleError
from ufork.infer.device import use_device
from ufork.infer.requests import partial_image
from ufork.vision.codec import ImageCodec
from ufork.vision.image_header import read_image_header
from ufork.vision.images import decode_image
from ufork.vocabulary import Task

MAX_UNFINISHED_SHARE = 0.2
"""Largest share of time in which unfinished pictures are decoded."""
MIN_INTERVAL_SECONDS = 0.05
"""Shortest time between two unfinished pictures; people see no more."""
PNG_COMPRESSION = 1
"""zlib's level: the fastest."""

Result = TypeVar("Result")


class Pictures:
    """A thread that decodes and encodes pictures."""

    def __init__(self, codec: ImageCodec, *, max_image_pixels: float):
        """Starts the thread; `close`, or `with`, ends it."""
        self._codec, self._max_image_pixels = codec, max_image_pixels
        self._thread = ThreadPoolExecutor(1, "ufork pictures", use_device, (codec.codebook.device,))
        self._unfinished = threading.Lock()
        self._next_time = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread after the picture it works at; further calls raise RuntimeError."""
        self._thread.shutdown(cancel_futures=True)

    def finished(self, codes_NC: np.ndarray) -> bytes:
        """Returns a whole drawing as a PNG file."""
        return self._compute(lambda: self._png(codes_NC))

    def unfinished(self, codes_NC: np.ndarray) -> bytes | None:
        """Returns the positions so far, the rest grey, as a PNG file; None if the last such picture is too recent."""
        if not self._unfinished.acquire(blocking=False):
            return None
        try:
            if time.monotonic() < self._next_time:
                return None
            start = time.monotonic()
            png = self._compute(lambda: self._png(codes_NC))
            now = time.monotonic()
            self._next_time = max(start + MIN_INTERVAL_SECONDS, now + (now - start) * (1 / MAX_UNFINISHED_SHARE - 1))
            return png
        finally:
            self._unfinished.release()

    def read_upload(self, data: bytes) -> np.ndarray:
        """Decodes an image file for a question.

        Raises:
            SampleError: as `decode_image`, or the image has more pixels than allowed.
        """
        header = read_image_header(data)
        if (num_pixels := header.width_px * header.height_px) > self._max_image_pixels:
            raise SampleError(
                f"the image has {num_pixels / 1e6:.1f} million pixels, this server reads"
                f" {self._max_image_pixels / 1e6:g} million (--max-image-megapixels); make it smaller"
            )
        size_px = self._codec.config.image_px
        return self._compute(lambda: decode_image(data, size_px=size_px, purpose=Task.UNDERSTANDING))

    def _compute(self, function: Callable[[], Result]) -> Result:
        return self._thread.submit(function).result()

    def _png(self, codes_NC: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(partial_image(self._codec, codes_NC)).save(file, "PNG", compress_level=PNG_COMPRESSION)
        return file.getvalue()
