"""The whole journey of embeddings that already lie in the database, in three forms, on this machine."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import click
import sqlalchemy as sa

from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.sandbox.stage import Stage, keys_of

QUESTION = "compress and decompress files"
KILL_AT = 0.3
"""The share of the JSON values that is written when the move is killed."""
QUARANTINED = 3
"""The exit code of a run that has named the values that are no vectors."""
REFUSED = 2
BATCH_SIZE = 100
ROWS = 6000
"""The passages that are moved unless a person asks for another number: each is embedded by three models first."""
TABLES = {"by_json": ("as_json", 256, ""), "by_csv": ("as_csv", 128, ""), "by_bytes": ("as_bytes", 64, "float32-le")}
"""The vector tables: the old column, its dimension, and what its bytes are."""
TOML = """
    [tables.{name}]
    table = "passages"
    key = "id"
    text = "body"
    embedding = "{name}"
    dimension = {dimension}
    source = "column"
    old = {{ column = "{old}"{elements} }}
"""
ENV = '''
    """The application's own Alembic."""

    import os

    import sqlalchemy as sa
    from alembic import context

    import amprenta_vectors.ddl  # registers the operations

    engine = sa.create_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg2://", 1))
    with engine.connect() as connection:
        context.configure(connection=connection, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
'''
COLUMNS = '''
    """Passages have embeddings that pgvector can search."""

    import amprenta_vectors.ddl  # registers the operations
    from alembic import op

    revision = "app_0001"
    down_revision = None


    def upgrade() -> None:
        op.create_vector_extension()
        op.add_vector_column("passages", "by_json", 256)
        op.add_vector_column("passages", "by_csv", 128)
        op.add_vector_column("passages", "by_bytes", 64)


    def downgrade() -> None:
        op.drop_vector_column("passages", "by_bytes")
        op.drop_vector_column("passages", "by_csv")
        op.drop_vector_column("passages", "by_json")
        op.drop_vector_extension()
'''
INDEX = '''
    """Searches of passages find their way."""

    import amprenta_vectors.ddl  # registers the operations
    from alembic import op

    revision = "app_0002"
    down_revision = "app_0001"


    def upgrade() -> None:
        op.create_vector_index("passages_by_json", "passages", "by_json")


    def downgrade() -> None:
        op.drop_vector_index("passages_by_json")
'''


class ColumnDemo(Stage):
    """Make the table, use it all the while, inspect, move with a kill, index, verify, search, and go back."""

    _client: subprocess.Popen[str] | None = None

    def _close(self) -> None:
        if self._client is not None:
            self._client.kill()
            self._client.wait()
        super()._close()

    def _acts(self) -> list[Callable[[], None]]:
        return [
            self._old_system,
            self._inspect,
            self._expand,
            self._move_with_a_kill,
            self._search,
            self._reconcile,
            self._go_back,
            self._end,
        ]

    def _old_system(self) -> None:
        self._title("An application as it is today: embeddings as JSON, as text between commas, and as bytes")
        self._start_sandbox(" --rows 1")
        self._do(f"python -m amprenta_vectors.sandbox.legacy_columns --rows {self._rows or ROWS}")
        self._client_output = self._folder.resolve() / "client.json"
        self._client = self._begin(
            f"python -m amprenta_vectors.sandbox.async_client --output {shlex.quote(str(self._client_output))}"
        )
        self._count = self._number("SELECT count(as_json) FROM passages")
        self._old = self._fingerprint("as_json", "as_csv", "as_bytes")
        self._note("source", f"{self._count:,} values in each of three columns, in use by asyncpg")

    def _inspect(self) -> None:
        self._title("1. Inspect: what the columns hold")
        declared = "".join(
            dedent(
                TOML.format(
                    name=name,
                    dimension=dimension,
                    old=old,
                    elements=f', elements = "{elements}"' if elements else "",
                )
            )
            for name, (old, dimension, elements) in TABLES.items()
        )
        path = self._folder.resolve() / "amprenta.toml"
        path.write_text(declared)
        self._export(AMPRENTA_CONFIG=str(path), VECTOR_DIMENSION="")
        for name in TABLES:
            self._export(AMPRENTA_TABLE=name)
            self._do("amprenta-vectors sources inspect")

    def _expand(self) -> None:
        self._title("2. Expand: the columns and an index, by the application's own revisions")
        app = self._folder.resolve() / "app"
        (app / "versions").mkdir(parents=True)
        (app / "env.py").write_text(dedent(ENV).lstrip())
        (app / "versions" / "app_0001_columns.py").write_text(dedent(COLUMNS).lstrip())
        (app / "versions" / "app_0002_index.py").write_text(dedent(INDEX).lstrip())
        self._ini = app / "alembic.ini"
        self._ini.write_text(f"[alembic]\nscript_location = {app}\n")
        self._do("amprenta-vectors db upgrade core_0001")
        self._app("upgrade head")

    def _app(self, arguments: str) -> None:
        self._do(f"alembic -c {shlex.quote(str(self._ini))} {arguments}")

    def _move_with_a_kill(self) -> None:
        self._title("3. Move, killed with SIGKILL partway, and resumed; indexed and verified at its end")
        self._export(AMPRENTA_TABLE="by_json")
        self._do("amprenta-vectors backfill", expect=REFUSED)
        command = "amprenta-vectors backfill --dimension 256"
        process = self._begin(f"{command} --batch-size {BATCH_SIZE} --workers 1")
        killed_at = self._kill_at(int(KILL_AT * self._count), process)
        self._note("killed", f"SIGKILL after {killed_at:,} of {self._count:,} rows")
        self._do(f"{command} --resume", expect=QUARANTINED)
        self._do("amprenta-vectors errors --limit 3")
        for name in ("by_csv", "by_bytes"):
            self._export(AMPRENTA_TABLE=name)
            self._do("amprenta-vectors backfill", expect=QUARANTINED)
        self._export(AMPRENTA_TABLE="by_json")
        written, left = self._number("SELECT count(by_json) FROM passages"), self._count
        self._note(
            "resumed", f"{written:,} rows have their embedding; {left - written:,} are of another model, or broken"
        )

    def _search(self) -> None:
        self._title("4. Search")
        self._export(VECTOR_BACKEND="pgvector")
        if len(keys_of(self._do(f"amprenta-vectors sandbox ask {shlex.quote(QUESTION)}")[1])) != 5:
            raise AmprentaError("the search gave less than it was asked for")

    def _reconcile(self) -> None:
        self._title("5. Reconcile: what the application wrote to the old column since")
        with self._engine.begin() as connection:
            [key] = connection.scalars(
                sa.text("SELECT min(id) FROM passages WHERE as_json IS NULL AND by_json IS NULL")
            )
            connection.execute(
                sa.text("UPDATE passages SET as_json = CAST(:value AS jsonb) WHERE id = :key"),
                {"value": json.dumps([0.5] * 256), "key": key},
            )
        before = self._number("SELECT count(by_json) FROM passages")
        self._do("amprenta-vectors reconcile --dimension 256", expect=QUARANTINED)
        if self._number("SELECT count(by_json) FROM passages") != before + 1:
            raise AmprentaError("the row that was written to the old column since was not found")
        self._old = self._fingerprint("as_json", "as_csv", "as_bytes")
        self._note("reconciled", "a row that got its old value since has its embedding")

    def _go_back(self) -> None:
        self._title("6. Go back: the application reads the old columns as before")
        before = self._fingerprint("by_json", "by_csv", "by_bytes")
        self._app("downgrade base")
        if self._fingerprint("by_json_retired", "by_csv_retired", "by_bytes_retired") != before:
            raise AmprentaError("the embeddings did not survive the downgrade")
        if self._fingerprint("as_json", "as_csv", "as_bytes") != self._old:
            raise AmprentaError("an old column has changed")
        self._note("rolled back", "the old columns are as they were; the downgrade kept every embedding")

    def _end(self) -> None:
        if self._client is None:
            raise AmprentaError("no application was started")
        self._client.terminate()
        self._client.wait()
        counts = json.loads(Path(self._client_output).read_text())
        if counts["failed"] or not counts["views"]:
            raise AmprentaError(f"the application failed {counts['failed']:,} times")
        self._note("application", f"{counts['views']:,} views counted all the while, none failed")
        click.echo()

    def _fingerprint(self, *columns: str) -> str:
        listed = " || ".join(f"coalesce({column}::text, '-')" for column in columns)
        statement = f"SELECT md5(string_agg(id::text || {listed}, ',' ORDER BY id)) FROM passages"  # noqa: S608
        with self._engine.connect() as connection:
            return str(connection.scalar(sa.text(statement)))
