"""What an application does that knows nothing of embeddings."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import closing

import psycopg2
import psycopg2.extensions
from migrating import Database


def use(db: Database, prefix: str = "") -> None:
    """Each kind of statement once, as an application types it; raises where one fails or finds something amiss."""
    key = f"{prefix}old application"
    db.execute("INSERT INTO rag_chunks (chunk_id, content) VALUES (:key, 'first')", key=key)
    db.execute("INSERT INTO rag_chunks VALUES (:key, 3, 'by position')", key=f"{key} 2")
    assert db.execute("SELECT * FROM rag_chunks WHERE chunk_id = :key", key=key)[0][:3] == (key, 7, "first")
    db.execute("UPDATE rag_chunks SET content = 'second', updated_at = now() WHERE chunk_id = :key", key=key)
    for content in ("third", "fourth"):
        db.execute(
            "INSERT INTO rag_chunks (chunk_id, content) VALUES (:key, :content) "
            "ON CONFLICT (chunk_id) DO UPDATE SET content = excluded.content, updated_at = now()",
            key=key,
            content=content,
        )
    assert db.scalar("SELECT content FROM rag_chunks WHERE chunk_id = :key", key=key) == "fourth"
    deleted = db.execute(
        "DELETE FROM rag_chunks WHERE chunk_id IN (:key, :other) RETURNING chunk_id", key=key, other=f"{key} 2"
    )
    assert len(deleted) == 2


class WritingLoad:
    """Threads that write as such an application does, with a limit on how long a statement may take."""

    def __init__(self, db: Database, *, threads: int, limit_seconds: float) -> None:
        self.errors: list[BaseException] = []
        self.waits: list[float] = []
        self._url = db.url
        self._limit = limit_seconds
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(threads)]

    def __enter__(self) -> WritingLoad:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _write(self, thread: int) -> None:
        try:
            with closing(psycopg2.connect(self._url)) as connection, connection.cursor() as cursor:
                connection.autocommit = True
                cursor.execute(f"SET lock_timeout = '{self._limit}s'; SET statement_timeout = '{self._limit + 1}s'")
                for number in itertools.count():
                    if self._over.is_set():
                        return
                    self._write_once(cursor, f"load-{thread}-{number}")
        except psycopg2.Error as error:
            self.errors.append(error)

    def _write_once(self, cursor: psycopg2.extensions.cursor, key: str) -> None:
        began = time.monotonic()
        cursor.execute("INSERT INTO rag_chunks (chunk_id, content) VALUES (%s, 'new')", (key,))
        cursor.execute("UPDATE rag_chunks SET content = 'again', updated_at = now() WHERE chunk_id = %s", (key,))
        cursor.execute(
            "UPDATE rag_chunks SET content = 'new', updated_at = clock_timestamp() WHERE chunk_id = "
            "(SELECT chunk_id FROM rag_chunks WHERE content LIKE 'text%%' OFFSET floor(random() * 50) LIMIT 1)"
        )
        cursor.execute("SELECT * FROM rag_chunks WHERE chunk_id = %s", (key,))
        assert cursor.fetchone() is not None
        cursor.execute("DELETE FROM rag_chunks WHERE chunk_id = %s", (key,))
        self.waits.append(time.monotonic() - began)
