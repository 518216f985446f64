"""The HTTP server: connections, keys, counts and faults around the API of :mod:`rest`."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.sandbox.pinecone.faults import FAULTS, Calls, Fault, Faults
from amprenta_vectors.sandbox.pinecone.refusals import Refused
from amprenta_vectors.sandbox.pinecone.request import Request, find_route
from amprenta_vectors.sandbox.pinecone.rest import RestApi, error_body

_LINGER_AND_RESET = struct.pack("ii", 1, 0)
_NO_FAULT = Fault()


class HttpServer(ThreadingHTTPServer):
    """Serves ``api`` on 127.0.0.1, a thread for each connection."""

    daemon_threads = True
    request_queue_size = 128
    timeout = 0.5

    def __init__(
        self,
        port: int,
        *,
        open_api: Callable[[str], RestApi],
        api_key: str,
        faults: Faults,
        calls: Calls,
        sleep: Callable[[float], object],
    ) -> None:
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise ConfigError(f"port {port} is taken", hint="choose another port, or 0 for a free one") from error
        self.port = int(self.server_address[1])
        self.host = f"http://127.0.0.1:{self.port}"
        self.api = open_api(self.host)
        self.api_key = api_key
        self.faults = faults
        self.calls = calls
        self.sleep = sleep
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="pinecone-http", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and hang up, as the end of a process would: clients keep connections open for long."""
        self._stopped.set()
        with suppress(
            OSError
        ):  # where the system knows no such thing of a socket that listens, its time-out ends the wait
            self.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.server_close()
        with self._lock:
            for connection in self._connections:
                _hang_up(connection)

    def _serve(self) -> None:
        while not self._stopped.is_set():
            self.handle_request()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, to hang up on it when the server stops."""
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection, which is at its end."""
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that hung up; show anything else, which is a fault of the emulator."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # the client was first
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HttpServer

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: requests are counted."""

    def do_GET(self) -> None:
        """Answer one request."""
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if url.path.startswith("/_sandbox/"):
            self._administer(url.path, body)
            return
        found = find_route(self.command, url.path)
        if found is None:
            self._send(404, error_body("", 404, f"{self.command} {url.path} is not a route of this index"))
            return
        route, name, documents = found
        with self.server.calls.arrived(route):
            self._carry_out(Request(route, name, documents, parse_qs(url.query, keep_blank_values=True), body))

    def _carry_out(self, request: Request) -> None:
        fault = self.server.faults.draw(request.route)
        self.server.sleep(fault.latency)
        if fault.reset:
            self._reset()
        elif fault.status is not None:
            self._send(fault.status, error_body(request.route, fault.status, "The sandbox was told to fail"), fault)
        else:
            self._send(*self._answer(request), fault)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the names that http.server calls

    def _answer(self, request: Request) -> tuple[int, bytes]:
        if self.headers.get("Api-Key") != self.server.api_key:
            return 401, error_body(request.route, 401, "Invalid API key")
        try:
            return 200, self.server.api.answer(request)
        except Refused as error:
            return error.status, error_body(request.route, error.status, error.message)

    def _send(self, status: int, body: bytes, fault: Fault = _NO_FAULT) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if fault.retry_after is not None:
            self.send_header("Retry-After", f"{fault.retry_after:g}")
        self.end_headers()
        if not (fault.truncate or fault.stall):
            self.wfile.write(body)
            return
        middle = len(body) // 2
        self.wfile.write(body[:middle])
        if fault.truncate:
            self.close_connection = True
            return
        self.server.sleep(fault.stall)
        self.wfile.write(body[middle:])

    def _reset(self) -> None:
        # Closing with a linger time of 0 sends RST in place of FIN (socket(7), SO_LINGER).
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_AND_RESET)
        self.connection.close()
        self.close_connection = True

    def _administer(self, path: str, body: bytes) -> None:
        match self.command, path:
            case "GET", "/_sandbox/calls":
                calls = self.server.calls
                self._send(200, orjson.dumps({"calls": dict(calls), "read_units": calls.read_units}))
            case "PUT", "/_sandbox/faults":
                self._set_faults(body)
            case "DELETE", "/_sandbox/faults":
                self.server.faults.clear()
                self._send(200, b"{}")
            case _:
                self._send(404, error_body("", 404, f"{self.command} {path} is not a route of the sandbox"))

    def _set_faults(self, body: bytes) -> None:
        try:
            for route, fault in FAULTS.validate_json(body).items():
                self.server.faults.set(route, fault)
        except ValueError as error:
            self._send(400, error_body("", 400, str(error)))
        else:
            self._send(200, b"{}")
