"""A pooler of the tests' own: every transaction of a client meets another session of the server than the one before.

It pools by transaction, as PgBouncer does in its usual mode, and is less kind: PgBouncer tends to hand back the session
that was used last, so that what relies on a session goes unnoticed while nobody else is there. It is a process of its
own, so that its threads do not wait for those of a test.
"""

from __future__ import annotations

import itertools
import select
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

# https://www.postgresql.org/docs/current/protocol-message-formats.html
PROTOCOL, CANCEL, SSL, GSS = 3 << 16, 80877102, 80877103, 80877104
ASKS_FOR_ANSWER = b"QScf"
"""Query, Sync, and the two ends of a COPY: after each of them it is the server's turn."""
FLUSH, ENDS_A_DESCRIPTION = b"H", b"TnE"
"""What asyncpg sends after it had a statement described, and the messages of which one is the last of the answer."""
FIRST_CLIENT = 2_000_000_000
"""The process ids that clients are told; no server process has one of them."""


def framed(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def read_message(stream: BufferedIOBase) -> tuple[bytes, bytes]:
    """The kind of the next message, and all of it. Raises `ConnectionError` where the other side is gone."""
    header = stream.read(5)
    if len(header) < 5:
        raise ConnectionError
    return header[:1], header + stream.read(struct.unpack("!i", header[1:])[0] - 4)


class Session:
    """A session of the server."""

    def __init__(self, path: str, user: str, database: str) -> None:
        self._path = path
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.stream = self.socket.makefile("rb")
        names = f"user\0{user}\0database\0{database}\0\0".encode()
        self.socket.sendall(struct.pack("!ii", len(names) + 8, PROTOCOL) + names)
        self.greeting = self.key = b""
        kind = b""
        while kind != b"Z":
            kind, message = read_message(self.stream)
            if kind == b"E":
                raise ConnectionError(message)
            if kind == b"S":
                self.greeting += message
            if kind == b"K":
                self.key = message[5:]

    @property
    def is_lost(self) -> bool:
        """Whether the server has ended it; a session that is waiting has nothing to say."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def cancel(self) -> None:
        """Ask the server to end the statement under way."""
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(self._path)
            other.sendall(struct.pack("!ii", len(self.key) + 8, CANCEL) + self.key)

    def close(self) -> None:
        """End it, and whatever transaction it is in."""
        self.stream.close()
        self.socket.close()


class TransactionPooler:
    """Listens on loopback, and gives each transaction the session that has waited longest, of ``most`` at most."""

    def __init__(self, path: str, user: str, database: str, most: int) -> None:
        self._to_session = (path, user, database)
        self._most = most
        self._open = 0
        self._free: deque[Session] = deque()
        self._changed = threading.Condition()
        self._at_work: dict[bytes, Session] = {}
        self._numbers = itertools.count(FIRST_CLIENT)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        """Serve clients until the process ends."""
        while True:
            client, _ = self._listener.accept()
            # Else each answer of several messages waits for the client to acknowledge the first, some 40 ms.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        session: Session | None = None
        key = struct.pack("!ii", next(self._numbers), 0)
        with client, client.makefile("rb") as stream, suppress(OSError):
            if not self._greet(client, stream, key):
                return
            try:
                while True:
                    kind, message = read_message(stream)
                    if kind == b"X":
                        return
                    if session is None:
                        session = self._at_work[key] = self._take()
                    session.socket.sendall(message)
                    if kind == FLUSH:
                        self._hand_on(session, client, ENDS_A_DESCRIPTION)
                    elif kind in ASKS_FOR_ANSWER and self._answer(session, client) == b"I":
                        self._at_work.pop(key)
                        self._give_back(session)
                        session = None
            finally:
                if session is not None:
                    self._at_work.pop(key, None)
                    self._drop(session)

    def _greet(self, client: socket.socket, stream: BufferedIOBase, key: bytes) -> bool:
        """Open a client's session; returns whether there is one, which there is not where it came to cancel."""
        while True:
            size, code = struct.unpack("!ii", stream.read(8))
            rest = stream.read(size - 8)
            if code == CANCEL:
                if rest in self._at_work:
                    self._at_work[rest].cancel()
                return False
            if code == PROTOCOL:
                break
            client.sendall(b"N")
        if b"options" in rest.split(b"\0")[::2]:
            # PgBouncer as well does not take settings that are to hold for a session.
            client.sendall(framed(b"E", b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"))
            return False
        session = self._take()
        self._give_back(session)
        opened = framed(b"R", struct.pack("!i", 0)) + session.greeting + framed(b"K", key) + framed(b"Z", b"I")
        client.sendall(opened)
        return True

    def _answer(self, session: Session, client: socket.socket) -> bytes:
        """Hand the answer on; returns the transaction's state after it, nothing where the server waits for a COPY."""
        last = self._hand_on(session, client, b"ZG")
        return last[5:] if last[:1] == b"Z" else b""

    @staticmethod
    def _hand_on(session: Session, client: socket.socket, until: bytes) -> bytes:
        """Hand on what the server says, until a message of one of those kinds; returns that one."""
        while True:
            kind, message = read_message(session.stream)
            client.sendall(message)
            if kind in until:
                return message

    def _take(self) -> Session:
        with self._changed:
            while True:
                for session in [session for session in self._free if session.is_lost]:
                    self._free.remove(session)
                    self._drop(session)
                # Never the only one that waits, as long as there may be another: it may be the client's last.
                if len(self._free) > 1 or (self._free and self._open == self._most):
                    return self._free.popleft()
                if self._open < self._most:
                    self._open += 1
                    break
                self._changed.wait()
        return Session(*self._to_session)

    def _give_back(self, session: Session) -> None:
        with self._changed:
            self._free.append(session)
            self._changed.notify()

    def _drop(self, session: Session) -> None:
        session.close()
        with self._changed:
            self._open -= 1
            self._changed.notify()


@contextmanager
def alternating(database_url: str, pool_size: int = 20) -> Iterator[str]:
    """The URL by which the database of ``database_url``, on a Unix socket, is reached through a pooler of our own."""
    database, options = urlsplit(database_url).path[1:], parse_qs(urlsplit(database_url).query)
    path = Path(options["host"][0], f".s.PGSQL.{options['port'][0]}")
    command = [sys.executable, __file__, str(path), "postgres", database, str(pool_size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"postgresql://postgres@127.0.0.1:{int(process.stdout.readline())}/{database}"
        finally:
            process.kill()


if __name__ == "__main__":
    pooler = TransactionPooler(*sys.argv[1:4], int(sys.argv[4]))
    print(pooler.port, flush=True)  # noqa: T201 - how its starter learns of it
    pooler.serve()
