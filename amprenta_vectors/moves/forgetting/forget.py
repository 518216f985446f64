"""``forget``: a person's rows, by keys or by user, go from all that is kept here, in one transaction."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backends.opening import kind_of
from amprenta_vectors.backfill.progress import forgetting
from amprenta_vectors.backfill.progress.forgetting import Mentions, Named
from amprenta_vectors.backfill.progress.transactions import serialize_starts
from amprenta_vectors.batch import Key
from amprenta_vectors.config import Settings, normalize_namespace
from amprenta_vectors.errors import ConfigError, NotUpgraded
from amprenta_vectors.moves.ends import scope_of
from amprenta_vectors.moves.forgetting import elsewhere
from amprenta_vectors.moves.forgetting.rows import KeptTable, Rows, find_kept, named_by, scopes_of, take_out
from amprenta_vectors.moves.forgetting.traces import forget_intents, forget_marks, forget_queries
from amprenta_vectors.schema.catalogue import check_scope, located
from amprenta_vectors.schema.engine_tables import kept_clause
from amprenta_vectors.schema.held import check_namespace
from amprenta_vectors.schema.key_values import canonical
from amprenta_vectors.schema.keymaps import OwnKeys
from amprenta_vectors.schema.registry import SHIPPED, get_table, read_config
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.sections import upgrade_command

USER_COLUMN = "user_id"
"""The scope column that says whose a row is."""

_LIMITS = sa.text("SELECT set_config('lock_timeout', '10s', true)")


@dataclass(frozen=True)
class Person:
    """Who is to be forgotten: rows by ``keys`` of the namespace, of the source or the table's own, or a ``user``."""

    keys: Sequence[str] = ()
    namespace: str | None = None
    user: str | None = None

    @property
    def values(self) -> Sequence[str]:
        """The values that name them."""
        return self.keys if self.user is None else [self.user]


@dataclass
class Forgotten:
    """What went: rows by table; and what did not.

    ``owed`` counts deletions that the other store has still to get, ``elsewhere`` says where else the rows may be.
    """

    removed: Counter[str] = field(default_factory=Counter)
    owed: int = 0
    elsewhere: list[str] = field(default_factory=list)


def forget(settings: Settings, engine: Engine, person: Person, *, dry_run: bool) -> Forgotten:
    """Take a person's rows out of everything that is kept here, and leave a record without any value of theirs.

    A dry run does the same and takes it back. Raises `RunConflict` while a run into the scope is unfinished.
    """
    _check(person)
    with engine.connect() as connection, connection.begin() as transaction:
        connection.execute(_LIMITS)
        forgotten = _Forgetting(settings, engine, connection, person).all()
        if dry_run:
            transaction.rollback()
    return forgotten


def _check(person: Person) -> None:
    if bool(person.keys) == (person.user is not None):
        raise ConfigError("expected either keys or a user", hint="--key KEY, as often as needed, or --user USER")
    if person.user is not None and person.namespace is not None:
        raise ConfigError(
            "--user and --namespace contradict each other: a user's rows go from every namespace",
            hint="give one of them",
        )
    for value in person.values:
        if not value or "\0" in value or (not value.isascii() and value != value.encode(errors="replace").decode()):
            raise ConfigError(f"{value!r} is no key and no user: expected a text", hint="--key KEY or --user USER")


def _open_record(connection: Connection) -> sa.TableClause:
    columns = (sa.column("asked_for", sa.Text), sa.column("removed", JSONB))
    record = kept_clause(connection, "vector_forgotten", *columns)
    if record is None:
        raise NotUpgraded("the database has no table vector_forgotten for the record", hint=upgrade_command(connection))
    return record


class _Forgetting:
    def __init__(self, settings: Settings, engine: Engine, connection: Connection, person: Person) -> None:
        self._settings = settings
        self._engine = engine
        self._connection = connection
        self._record_table = _open_record(connection)
        self._person = person
        self._mentions = Mentions(person.values)
        self._done = Forgotten()
        self._touched: set[str] = set()
        self._keys: set[str] = set()
        self._sources: set[str] = set()

    def all(self) -> Forgotten:
        """Take everything out, and record that."""
        if self._person.user is None:
            owner = self._forget_keys()
        else:
            owner = self._person.user
            self._forget_user(owner)
        self._count("shadow_query", forget_queries(self._connection, sorted(self._keys), self._mentions))
        if self._done.removed:
            self._record()
        self._done.elsewhere += elsewhere.places(
            self._settings, self._person.values, owner, sorted(self._sources), sorted(self._touched)
        )
        return self._done

    def _forget_keys(self) -> str | None:
        """Forget rows by their keys; return the user in whose scope they are, if it names one."""
        settings = self._settings
        declared = get_table(settings.table, settings.config)
        of_pinecone = kind_of(settings, declared) == "pinecone"
        namespace = self._person.namespace
        if namespace is None:
            namespace = settings.namespace if of_pinecone else ""
        namespace = normalize_namespace(namespace)
        scope: Mapping[str, str] = {}
        for table in self._beside(declared):
            kept = find_kept(self._connection, table)
            if kept is None:
                scope = table.scope_for(namespace)
            else:
                check_scope(table, kept.found.columns)
                scope = scope_of(kept.table, namespace)
                # A source without namespaces filled the one that the table holds.
                if namespace or of_pinecone:
                    check_namespace(self._connection, kept.known, namespace)
            self._begin(located(self._connection, table).target, scope)
            self._forget_rows_by_key(table, kept, scope)
        return scope.get(USER_COLUMN)

    def _beside(self, declared: VectorTable) -> list[VectorTable]:
        """Return the vector tables that are columns of the same rows."""
        others = {**SHIPPED, **read_config(self._settings.config)}.values()
        same = (declared.schema, declared.table, declared.key)
        return [
            declared,
            *(each for each in others if each != declared and (each.schema, each.table, each.key) == same),
        ]

    def _begin(self, target: str, scope: Mapping[str, str]) -> None:
        """Keep runs from starting until the end. Raises `RunConflict` if one is unfinished."""
        named = Named(target, scope, () if self._person.user is None else None)
        serialize_starts(self._connection, target)
        forgetting.check_no_run(self._connection, named)
        self._sources.update(forgetting.sources_of_runs(self._connection, named))

    def _forget_rows_by_key(self, table: VectorTable, kept: KeptTable | None, scope: Mapping[str, str]) -> None:
        given = self._person.keys
        rows, named_keys, target = Rows((), ()), list[Key](), table.target
        if kept is not None:
            slice_, target = kept.slice(self._engine, scope), kept.target
            named_keys = named_by(slice_, given)
            rows = take_out(self._connection, kept, slice_, named_keys)
            self._count_rows(kept, rows, scope)
        own = [OwnKeys([""] * len(key)).to_source(key) for key in named_keys]
        names = sorted({*given, *own, *rows.known_as})
        # A source may have put a prefix before the UUID.
        likes = [f"%{key}" for key in own if table.key_rule.id_field and canonical(key, "uuid") == key]
        named = Named(target, scope, names, likes)
        self._keys.update(names)
        every = sorted({*named_keys, *rows.keys})
        self._intents(named)
        self._count("vector_row_mark", forget_marks(self._connection, named, every))
        for name, number in forgetting.forget_keys(self._connection, named, every, self._mentions).items():
            self._count(name, number)

    def _forget_user(self, user: str) -> None:
        tables = [
            table for table in {**SHIPPED, **read_config(self._settings.config)}.values() if USER_COLUMN in table.scope
        ]
        spelled = {user}
        for table in tables:
            kept = find_kept(self._connection, table)
            is_told = kept is not None and USER_COLUMN in kept.table.scope
            value = (kept.spelled(USER_COLUMN, user) if kept is not None and is_told else None) or user
            self._begin(located(self._connection, table).target, {USER_COLUMN: value})
            spelled.add(value)
            if kept is not None and is_told:
                self._forget_rows_of(kept, value)
            elif kept is not None:
                self._done.elsewhere.append(
                    f"{kept.name} has no column {USER_COLUMN}, so that it cannot be told whose its rows are"
                )
        for value in sorted(spelled):
            named = Named("", {USER_COLUMN: value})
            self._intents(named)
            self._count("vector_row_mark", forget_marks(self._connection, named, ()))
            for name, number in forgetting.forget_runs(self._connection, named).items():
                self._count(name, number)

    def _forget_rows_of(self, kept: KeptTable, user: str) -> None:
        if kept.spelled(USER_COLUMN, user) is None:
            return
        for scope in scopes_of(self._connection, kept, USER_COLUMN, user):
            rows = take_out(self._connection, kept, kept.slice(self._engine, scope), None)
            self._keys.update(rows.known_as)
            self._count_rows(kept, rows, scope)

    def _intents(self, named: Named) -> None:
        deleted, owed = forget_intents(self._connection, named, self._mentions)
        self._count("vector_outbox", deleted)
        self._done.owed += owed

    def _count_rows(self, kept: KeptTable, rows: Rows, scope: Mapping[str, str]) -> None:
        self._count(kept.name, rows.deleted)
        if rows.emptied:
            self._count(f"{kept.name}, emptied", len(rows.emptied))
            self._touched.add(kept.name)
            typed = kept.typed(scope, rows.emptied if self._person.user is None else ())
            self._done.elsewhere.append(
                f"{len(rows.emptied):,} row(s) of {kept.name} are the application's own and are still there, without "
                f"what was ours: {typed}"
            )

    def _count(self, name: str, rows: int) -> None:
        if rows:
            self._done.removed[name] += rows
            if "," not in name:
                self._touched.add(name)

    def _record(self) -> None:
        removed = sa.cast(sa.literal(json.dumps(dict(self._done.removed))), JSONB)
        asked_for = "key" if self._person.user is None else "user"
        self._connection.execute(sa.insert(self._record_table).values(asked_for=asked_for, removed=removed))
