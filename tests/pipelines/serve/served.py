"""A server of a tiny model in this process, and a client."""

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipelines.serve.api import Api
from pipelines.serve.config import ServeConfig
from pipelines.serve.http_server import Server
from pipelines.serve.pictures import Pictures
from ufork.infer.config import EngineConfig
from ufork.infer.engine import Engine
from ufork.infer.model import TrainedModel

JSON = {"Content-Type": "application/json"}


@dataclass
class Served:
    server: Server
    engine: Engine

    @property
    def port(self) -> int:
        return self.server.server_address[1]

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None):
        """Returns the status, the headers and the bytes of an answer; `body` is sent as JSON unless it is bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, (JSON if body is not None else {}) | (headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def events(self, path: str, body: Any) -> list[dict[str, Any]]:
        """Returns the events of a request that is accepted."""
        status, _, data = self.ask("POST", path, body)
        assert status == 200, data
        return [json.loads(line) for line in data.splitlines()]

    def refusal(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """Returns the status and the message of a request that is refused."""
        status, _, data = self.ask("POST", path, body, headers)
        return status, json.loads(data)["message"]

    def send(self, data: bytes) -> socket.socket:
        """Opens a connection and sends bytes."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(data)
        return connection


@contextmanager
def served(
    model: TrainedModel, engine_config: EngineConfig | None = None, *, computes: bool = True, **changes: Any
) -> Iterator[Served]:
    """Serves `model` on a free port; with `computes` the engine has its thread, otherwise the test calls `step`."""
    engine_config = engine_config or EngineConfig()
    config = ServeConfig(port=0, max_waiting=engine_config.max_waiting, **changes)
    with ExitStack() as stack:
        server = stack.enter_context(Server(config, max_requests=engine_config.max_waiting))
        pictures = stack.enter_context(Pictures(model.codec, max_image_pixels=config.max_image_megapixels * 1e6))
        engine = Engine(model, engine_config)
        thread = threading.Thread(target=server.serve, args=(Api(engine, pictures, config, name="tiny"),))
        thread.start()
        stack.callback(lambda: (engine.close(), server.wait_for_connections(), server.shutdown(), thread.join()))
        if computes:
            engine.start()
        yield Served(server, engine)


def png(side_px: int = 16, *, height_px: int | None = None) -> bytes:
    """Returns a PNG file of random pixels."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height_px or side_px, side_px, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def wait_until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.01)
