"""The document system's whole journey on this machine: files of several users, some encrypted, into PostgreSQL."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.extras import require_extra
from amprenta_vectors.sandbox.legacy_documents import STORES
from amprenta_vectors.sandbox.stage import Stage, keys_of

QUESTION = "parse a string into a number"
KILL_AT = 0.4
"""The share of the documents that is written when the move is killed."""
DOCUMENTS = 4000


class DocumentsDemo(Stage):
    """Make a legacy system, move it with a kill in the middle, verify, switch, and go back."""

    def _acts(self) -> list[Callable[[], None]]:
        self._root = (self._folder / "user_data").resolve()
        self._count = self._rows or DOCUMENTS
        return [self._legacy, self._expand, self._migrate, self._switch, self._roll_back]

    def _legacy(self) -> None:
        self._title("The old application: a folder a user, vectors in a pickle, texts in JSON, some of it encrypted")
        self._start_sandbox(" --rows 1")
        key = require_extra("cryptography.fernet", "documents").Fernet.generate_key().decode()
        self._export(
            VECTOR_STORE_ENCRYPTION_KEY=key,
            SIMPLE_STORE_ROOT=str(self._root),
            AMPRENTA_EMBEDDER="wordllama",
            AMPRENTA_TABLE="vector_documents",
            VECTOR_BACKEND="simple",
        )
        root = shlex.quote(str(self._root))
        self._do(f"python -m amprenta_vectors.sandbox.legacy_documents {root} --documents {self._count}")
        self._before = self._digest()
        self._answers = self._ask_everybody()
        self._note("source", f"about {self._count:,} docstrings in {len(STORES)} stores of {len(self._users())} users")

    def _expand(self) -> None:
        self._title("1. Expand: the documents' section")
        self._do(self._alembic("upgrade head", "documents"))
        self._do(f"{self._migrate_command()} --dry-run")

    def _migrate(self) -> None:
        self._title("2. Move, killed with SIGKILL partway, and resumed")
        process = self._begin(f"{self._migrate_command()} --batch-size 50 --workers 1")
        killed_at = self._kill_at(int(KILL_AT * self._count), process)
        self._note("killed", f"SIGKILL after {killed_at:,} rows")
        _, output = self._do(f"{self._migrate_command()} --resume")
        if output.count("0 quarantined") != len(STORES):
            raise AmprentaError("not every store arrived whole")
        self._do("amprenta-vectors verify --all-namespaces")
        if self._digest() != self._before:
            raise AmprentaError("an old file was changed")
        self._note(
            "resumed", f"{self._rows_there():,} rows, every vector verified bit for bit; the files are unchanged"
        )

    def _switch(self) -> None:
        self._title("3. Switch: the same questions, from the same application, to the database")
        self._export(VECTOR_BACKEND="pgvector")
        if self._ask_everybody() != self._answers:
            raise AmprentaError("the two backends gave different hits")
        self._note("switched", f"{len(self._answers)} hits for {len(self._users())} users, the same from both backends")

    def _roll_back(self) -> None:
        self._title("4. Go back: the application to its files, and the rows that were inserted removed")
        self._export(VECTOR_BACKEND="simple")
        self._do(f"{self._migrate_command()} --rollback")
        if self._rows_there() or self._ask_everybody() != self._answers:
            raise AmprentaError("the old system is not what it was")
        self._note("rolled back", "no row is left, and the old files answer as before")

    def _migrate_command(self) -> str:
        return self._script("migrate_simple_store.py", "amprenta-vectors documents migrate")

    def _users(self) -> list[str]:
        return list(dict.fromkeys(user for user, _ in STORES))

    def _ask_everybody(self) -> list[str]:
        """Return the ids that the users' documents answer with, four each."""
        asked = shlex.join([QUESTION, *self._users()])
        ids = keys_of(self._do(f"python -m amprenta_vectors.sandbox.assistant {asked}")[1])
        if len(ids) != 4 * len(self._users()):
            raise AmprentaError("a user's store gave no answer")
        return ids

    def _rows_there(self) -> int:
        with self._engine.connect() as connection:
            return int(connection.execute(sa.text("SELECT count(*) FROM vector_documents")).scalar_one())

    def _digest(self) -> str:
        """Return one digest of every old file."""
        files = sorted(path for path in Path(self._root).rglob("*") if path.is_file())
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
