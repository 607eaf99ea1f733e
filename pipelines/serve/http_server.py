"""The HTTP server: files of the page and the API, with every request checked and bounded.

    GET /, /page.css, ...     files of `page/`, read once
    GET /api/model            JSON
    POST /api/draw, answer    JSON in; one JSON object per line out, as they come (`streams.py`)
    errors                    {"message": ...} and a status

Each connection has a thread and one request. Its number, the sizes of what it sends and the time it may take for that
are bounded. A client that goes away cancels its request.
"""

import errno
import json
import logging
import select
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from pipelines.serve.allowed_origins import is_own_host, is_own_origin, names_of
from pipelines.serve.api import Api
from pipelines.serve.config import ServeConfig
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
BODY_SECONDS = 60.0
"""Longest time for the body of a request."""
DISCARD_SECONDS = 2.0
"""Longest time in which the rest of a refused request is discarded, so that the client reads the refusal."""
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
        self.serve_forever()

    def wait_for_connections(self, seconds: float = CLOSING_SECONDS) -> None:
        """Waits until all connections have ended, but not longer than `seconds`."""
        deadline = time.monotonic() + seconds
        for _ in range(self._max_connections):
            if not self._free.acquire(timeout=max(deadline - time.monotonic(), 0)):
                break

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for a connection, or closes it if there are too many."""
        if not self._free.acquire(blocking=False):
            log.warning("a connection is refused: %d are open", self._max_connections)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._free.release()
            raise

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
        asks: dict[str, Callable[[bytes], Stream]] = {
            "/api/draw": self.server.api.draw,
            "/api/answer": self.server.api.answer,
        }
        if self.path not in asks:
            self._refuse(HTTPStatus.NOT_FOUND, f"post to one of {', '.join(asks)}")
        elif self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected Content-Type: application/json")
        elif (body := self._body()) is not None:
            try:
                stream = asks[self.path](body)
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
        host = self.headers.get("Host")
        if host is None or not is_own_host(host, self.server.names):
            self._refuse(
                HTTPStatus.FORBIDDEN,
                f"the host {host!r} is none of this server's; open {self.server.url}, or start it with --allow-host",
            )
            return False
        if not is_own_origin(self.headers.get("Origin"), host):
            self._refuse(HTTPStatus.FORBIDDEN, "requests from pages of other sites are refused")
            return False
        return True

    def _body(self) -> bytes | None:
        """Returns the body; None if it is refused."""
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
        body = bytearray()
        deadline = time.monotonic() + BODY_SECONDS
        while len(body) < int(length):
            chunk = self.rfile.read1(int(length) - len(body))
            if not chunk or time.monotonic() > deadline:
                raise TimeoutError("the body of a request is incomplete")
            body += chunk
        return bytes(body)

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
        deadline = time.monotonic() + DISCARD_SECONDS
        while (seconds := deadline - time.monotonic()) > 0:
            self.connection.settimeout(seconds)
            if not self.rfile.read1(2**16):
                return

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
