"""The HTTP server: files of the page and the API, with every request checked and bounded.

    GET /, /page.css, ...     files of `page/`, read once
    GET /api/model            JSON
    POST /api/draw, answer    JSON in; one JSON object per line out, as they come (`streams.py`)
    errors                    {"message": ...} and a status

Each connection has a thread and one request. Bounded are the number of connections, the size of each part of a request
and the time for it (`request_input.py`), and the memory of all bodies together (`memory_budget.py`). A client that goes
away cancels its request.
"""

import errno
import io
import json
import logging
import select
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from pipelines.serve.allowed_origins import is_own_host, is_own_origin, names_of
from pipelines.serve.api import Api
from pipelines.serve.config import ServeConfig
from pipelines.serve.memory_budget import Hold, MemoryBudget
from pipelines.serve.request_input import RequestInput
from pipelines.serve.streams import Stream, message_of
from ufork.errors import CancelledError, ConfigError, QueueFullError, SampleError, first_line

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
CONTENT_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Connection": "close",
}
"""Headers of every response. The page loads nothing from elsewhere, and text never becomes a script."""

SPARE_CONNECTIONS = 32
"""Connections beside those of requests that wait or are under way: for the page's files, and for refusals."""
IDLE_SECONDS = 10.0
"""Longest time in which a client neither sends nor reads anything that is expected of it."""
HEADER_SECONDS, MAX_HEADER_BYTES = 10.0, 2**16
"""Longest time for the first line and the headers of a request, and their largest size."""
BODY_SECONDS = 60.0
"""Longest time for the body of a request."""
DISCARD_SECONDS, MAX_DISCARDED_BYTES = 2.0, 2**30
"""Within these the rest of a refused request is discarded, so that the client reads the refusal."""
BODIES_AT_ONCE = 4
"""Largest bodies that may be in memory at a time, until their requests have started."""
CLOSING_SECONDS = 3.0
"""Longest time in which streams send their last event when the server ends."""


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Answers requests in threads, from a bound address on."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, config: ServeConfig, *, max_requests: int):
        """Binds the address, so that a port that is taken is an error before a model is loaded.

        Args:
            config: the address.
            max_requests: requests that an engine takes, waiting and under way.

        Raises:
            ConfigError: the address cannot be bound; the message says what to do.
        """
        self.config = config
        self.names = names_of(config.host, config.allowed_hosts)
        self.files = {f"/{path.name}": (CONTENT_TYPES[path.suffix], path.read_bytes()) for path in PAGE.iterdir()}
        self.files["/"] = self.files["/index.html"]
        self.api: Api
        self._max_connections = max_requests + SPARE_CONNECTIONS
        self._free = threading.Semaphore(self._max_connections)
        self.bodies: MemoryBudget
        try:
            family, _, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
            self.address_family = family
            super().__init__(address[:2], RequestHandler)  # type: ignore[arg-type]
        except (OSError, UnicodeError) as error:  # a name that cannot be one is the latter
            raise _address_error(error, config) from None

    @property
    def url(self) -> str:
        """Address of the page for a browser."""
        is_any = self.config.host in ("0.0.0.0", "::")
        host = socket.gethostname() if is_any else self.config.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_address[1]}/"

    def serve(self, api: Api) -> None:
        """Answers requests until `shutdown`, or until a signal handler raises."""
        self.api = api
        self.bodies = MemoryBudget(BODIES_AT_ONCE * api.max_body_bytes)
        self.serve_forever()

    def wait_for_connections(self, seconds: float = CLOSING_SECONDS) -> None:
        """Waits until all connections have ended, but not longer than `seconds`."""
        deadline = time.monotonic() + seconds
        for _ in range(self._max_connections):
            if not self._free.acquire(timeout=max(deadline - time.monotonic(), 0)):
                break

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for a connection, or refuses it if there are too many."""
        if not self._free.acquire(blocking=False):
            log.warning("a connection is refused: %d are open", self._max_connections)
            self._refuse_connection(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._free.release()
            raise

    def _refuse_connection(self, connection: socket.socket) -> None:
        message = f"{self._max_connections} connections are open, as many as this server takes; try again later"
        connection.setblocking(False)  # this thread accepts all others
        with suppress(OSError):
            connection.recv(MAX_HEADER_BYTES)  # closing with unread input would reset the connection and the refusal
        with suppress(OSError):
            connection.send(_plain_response(HTTPStatus.SERVICE_UNAVAILABLE, message))
        self.shutdown_request(connection)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers the request of a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs what went wrong with a connection; a client that is gone or slow is nobody's mistake."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            log.exception("a connection has failed")


class RequestHandler(BaseHTTPRequestHandler):
    """One connection and its request."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Bounds what the client sends, from its first byte on."""
        super().setup()
        self.rfile.close()
        self._input = RequestInput(self.connection, idle_seconds=IDLE_SECONDS)
        self._input.allow(HEADER_SECONDS, MAX_HEADER_BYTES)
        self.rfile = io.BufferedReader(self._input)

    def do_GET(self) -> None:
        """Sends a file of the page, or what the model can do."""
        if not self._is_trusted():
            return
        if self.path == "/api/model":
            self._send_json(HTTPStatus.OK, self.server.api.describe())
        elif found := self.server.files.get(self.path.partition("?")[0]):
            content_type, data = found
            self._send(HTTPStatus.OK, content_type, data)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page; the page is at /")

    def do_POST(self) -> None:
        """Starts a request and sends its events."""
        if not self._is_trusted():
            return
        asks: dict[str, Callable[[bytes | bytearray], Stream]] = {
            "/api/draw": self.server.api.draw,
            "/api/answer": self.server.api.answer,
        }
        if self.path not in asks:
            self._refuse(HTTPStatus.NOT_FOUND, f"post to one of {', '.join(asks)}")
        elif self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected Content-Type: application/json")
        elif (length := self._body_length()) is not None:
            try:
                with self.server.bodies.hold() as hold:
                    stream = asks[self.path](self._body(length, hold))
            except (TimeoutError, ConnectionError):  # of the connection
                raise
            except Exception as error:  # the client is told, whatever it is
                self._refuse(_status_of(error), message_of(error))
                return
            self._send_stream(stream)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuses what is no HTTP request, or another method, as JSON; the base class calls it."""
        self._refuse(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def log_message(self, format: str, *args: Any) -> None:
        """Logs requests for debugging only."""
        log.debug(format, *args)

    def _is_trusted(self) -> bool:
        """Whether no other site has made a browser send the request; otherwise it is refused."""
        hosts, origins = (self.headers.get_all(name, []) for name in ("Host", "Origin"))
        host = hosts[0] if len(hosts) == 1 else None
        if host is None or not is_own_host(host, self.server.names):
            self._refuse(
                HTTPStatus.FORBIDDEN,
                f"the host {host!r} is none of this server's; open {self.server.url}, or start it with --allow-host",
            )
            return False
        if not all(is_own_origin(origin, host) for origin in origins):
            self._refuse(HTTPStatus.FORBIDDEN, "requests from pages of other sites are refused")
            return False
        return True

    def _body_length(self) -> int | None:
        """Returns the size of the body; None if it is refused."""
        length, most = self.headers.get("Content-Length", ""), self.server.api.max_body_bytes
        if not (length.isascii() and length.isdecimal() and len(length) < 19):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
            return None
        if int(length) > most:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the request has {int(length):,} bytes, this server reads {most:,}; use a smaller image"
                " (--max-image-mib)",
            )
            return None
        return int(length)

    def _body(self, length: int, hold: Hold) -> bytearray:
        body = bytearray()
        self._input.allow(BODY_SECONDS, length)
        while len(body) < length:
            chunk = self.rfile.read1(length - len(body))
            if not chunk:
                raise ConnectionAbortedError("the body of a request is incomplete")
            hold.take(len(chunk))
            body += chunk
        return body

    def _send_stream(self, stream: Stream) -> None:
        with stream:
            self._send_headers(HTTPStatus.OK, "application/x-ndjson")
            for event in stream:
                if event is not None:
                    self.wfile.write(json.dumps(event).encode() + b"\n")
                elif self._client_is_gone():
                    log.debug("a client is gone, its request is cancelled")
                    return

    def _client_is_gone(self) -> bool:
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        return bool(poll.poll(0)) and not self.connection.recv(1, socket.MSG_PEEK)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._send_json(status, {"message": message})
        self._discard_input()

    def _discard_input(self) -> None:
        """Reads what the client still sends: closing a connection with unread input would reset it, and the refusal."""
        self.connection.shutdown(socket.SHUT_WR)
        self._input.allow(DISCARD_SECONDS, MAX_DISCARDED_BYTES)
        while self.rfile.read1(2**16):
            pass

    def _send_json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: HTTPStatus, content_type: str, data: bytes) -> None:
        self._send_headers(status, content_type, {"Content-Length": str(len(data))})
        self.wfile.write(data)

    def _send_headers(self, status: HTTPStatus, content_type: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": f"{content_type}; charset=utf-8", **HEADERS, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def version_string(self) -> str:
        """Returns the name of the server, without versions."""
        return "ufork"


def _plain_response(status: HTTPStatus, message: str) -> bytes:
    """Returns a refusal that is sent without a handler."""
    data = json.dumps({"message": message}).encode()
    headers = {"Content-Type": "application/json; charset=utf-8", "Content-Length": str(len(data)), **HEADERS}
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + data


def _status_of(error: Exception) -> HTTPStatus:
    if isinstance(error, ConfigError | SampleError):
        return HTTPStatus.BAD_REQUEST
    if isinstance(error, QueueFullError | CancelledError):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _address_error(error: OSError | UnicodeError, config: ServeConfig) -> ConfigError:
    where = f"port {config.port} of {config.host}"
    number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or first_line(error)
    if number == errno.EADDRINUSE:
        return ConfigError(f"{where} is taken by another program; give another --port, or --port 0 for any free one")
    if number == errno.EACCES:
        return ConfigError(f"{where} is for privileged users; give a --port of 1024 or more")
    return ConfigError(
        f"cannot listen on {where} ({reason}); --host is a name or an address of this machine, such as 127.0.0.1, or"
        " 0.0.0.0 for all of its addresses"
    )
