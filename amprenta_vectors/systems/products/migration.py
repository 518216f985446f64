"""The six steps of a catalogue's move from ChromaDB, each of them work of the engine."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

from sqlalchemy.engine import Connection

from amprenta_vectors.backends.rows.source import RowsOrigin, open_rows_origin
from amprenta_vectors.backfill.engine.observer import Observer, ignore
from amprenta_vectors.backfill.engine.run import Summary
from amprenta_vectors.backfill.engine.starting import Mode
from amprenta_vectors.backfill.progress import proof, runs
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.config import Settings
from amprenta_vectors.embedders.factory import open_embedder
from amprenta_vectors.errors import ConfigError, ExitCode, NotUpgraded, worst
from amprenta_vectors.moves.ends import Ends, open_ends, slice_of
from amprenta_vectors.moves.move import Move
from amprenta_vectors.moves.verification import verify_command
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.key_values import canonical
from amprenta_vectors.schema.slice import open_slice
from amprenta_vectors.systems.products import events
from amprenta_vectors.systems.products.model_check import check_product_model
from amprenta_vectors.systems.products.rows import coverage, filled_by_id, spot_check
from amprenta_vectors.systems.products.state import State, count_products, look_at_both

SPOTS = 3
"""How many products are checked and named at the end."""


@dataclass(frozen=True)
class Wanted:
    """A person's wish: to embed every product anew (``force``), or those with ``ids``; else to fill what is missing."""

    force: bool = False
    ids: tuple[str, ...] = ()
    mode: Mode = "join"
    verify: bool = True


class Migration:
    """One command's worth of the move; `run` takes the steps in order."""

    _ends: Ends
    _rows: RowsOrigin | None = None
    _begun: Run | None = None
    _unproven: Run | None = None
    _moves: bool

    def __init__(
        self,
        settings: Settings,
        wanted: Wanted,
        stop: threading.Event | None = None,
        observer: Observer = ignore,
    ) -> None:
        self._settings = settings
        self._wanted = wanted
        self._stop = stop or threading.Event()
        self._observer = observer
        self._ids: list[str] = []
        self._gain = 0
        self._summaries: list[Summary] = []

    def run(self, *, dry_run: bool = False) -> ExitCode:
        """Take the steps; return how the move ended. Raises `ConfigError` for a wrong option, and what stops a run."""
        began = time.monotonic()
        self._preflight()
        before = self._analyse()
        planned = self._plan(before)
        if dry_run:
            self._observer(events.WouldMigrate(planned))
            return ExitCode.CLEAN
        self._observer(events.StepBegun(4, planned))
        code = self._migrate(before)
        if code == ExitCode.INTERRUPTED:
            if not (self._summaries and self._summaries[-1].interrupted):
                self._observer(events.Interrupted())
            return code
        self._look_back(before)
        self._summarise(before, time.monotonic() - began)
        return code

    def _preflight(self) -> None:
        self._observer(events.StepBegun(1))
        try:
            self._ends = open_ends(self._settings, self._observer)
        except NotUpgraded as error:
            hint = error.hint if " -n " in error.hint else "alembic -n products upgrade head"
            raise NotUpgraded(error.message, hint=hint) from None
        self._observer(events.EndsReady(self._settings.chroma_collection))
        self._ids = self._known_ids()

    def _known_ids(self) -> list[str]:
        """Return the products asked for, as the table spells them."""
        table = self._ends.table
        type_name = table.column_types[table.key[0]]
        ids = []
        for given in dict.fromkeys(self._wanted.ids):
            spelled = canonical(given, type_name)
            if spelled is None:
                raise ConfigError(f"--product-id {given!r} is no {type_name}", hint="--product-id takes a products.id")
            ids.append(spelled)
        with self._ends.engine.connect() as connection:
            known = filled_by_id(connection, table, ids)
        self._gain = sum(not filled for filled in known.values())
        unknown = [name for name in ids if name not in known]
        if unknown:
            raise ConfigError(
                f"there is no product with the id {', '.join(unknown)}", hint="--product-id takes a products.id"
            )
        return ids

    def _analyse(self) -> State:
        self._observer(events.StepBegun(2))
        engine, table = self._ends.engine, self._ends.table
        source = self._ends.origin.open(table, "", with_metadata=False)
        state = look_at_both(engine, open_slice(engine, table, {}), source)
        self._observer(events.Analysed(state))
        return state

    def _plan(self, before: State) -> int:
        """Return how many products are to be written."""
        self._observer(events.StepBegun(3))
        to_move, to_embed = before.to_move, before.absent
        if not self._ids:
            self._gain = before.missing
        if self._wanted.force or self._ids:
            to_move, to_embed = 0, len(self._ids) or before.products
        self._observer(events.Planned(to_move, to_embed))
        with self._ends.engine.connect() as connection:
            begun = runs.unfinished_run(connection, self._ends.table.target, {})
            unproven = self._unproven_run(connection)
        self._begun = None if self._wanted.mode == "restart" else begun
        # An unfinished run stands in the way of another, and is resumed first.
        moving = begun is not None and begun.source_kind == "chroma"
        self._unproven = unproven if begun is None else None
        self._moves = (to_move > 0 or moving or self._is_unproven("chroma")) and not self._embedding
        if to_embed or self._embedding:
            self._open_rows()
        return to_move + to_embed

    def _unproven_run(self, connection: Connection) -> Run | None:
        """Return the last run that finished, if nobody has compared what it left: whoever ended it was killed."""
        last = runs.last_finished(connection, self._ends.table.target, {})
        if last is None or not self._wanted.verify or proof.last_verified(connection, self._ends.table.target, {}):
            return None
        return runs.load_run(connection, last)

    def _is_unproven(self, kind: str) -> bool:
        return self._unproven is not None and self._unproven.source_kind == kind

    @property
    def _embedding(self) -> bool:
        """Whether there is an unfinished run that embeds, to be resumed."""
        return self._begun is not None and self._begun.source_kind == "rows"

    def _open_rows(self) -> RowsOrigin:
        engine, table = self._ends.engine, self._ends.table
        rows = open_rows_origin(self._settings, table, engine)
        checked = check_product_model(
            self._settings,
            open_embedder(self._settings),
            self._ends.origin.open(table, "", with_metadata=True),
            open_slice(engine, table, {}).key_map,
            rows.open(table, "", with_metadata=False),
        )
        self._observer(events.EmbedderChecked(rows.model, checked))
        self._rows = rows
        return rows

    def _migrate(self, before: State) -> ExitCode:
        """Work at the runs that are due: first the move of what ChromaDB has, then the embedding of the rest."""
        codes = [ExitCode.CLEAN]
        if self._moves:
            codes.append(self._complete(self._chroma_move(before)))
        rows = self._rows_due() if codes[-1] != ExitCode.INTERRUPTED else None
        if rows is not None:
            codes.append(self._complete(self._rows_move(rows)))
        return worst(codes)

    def _rows_due(self) -> RowsOrigin | None:
        """Return what products are embedded from, if any is: also one whose vector in ChromaDB nobody can use."""
        if not (self._wanted.force or self._ids or self._embedding or self._is_unproven("rows")):
            with self._ends.engine.connect() as connection:
                if not slice_of(self._ends).has_empty(connection):
                    return None
        return self._rows or self._open_rows()

    def _chroma_move(self, before: State) -> Move:
        # One that is resumed keeps its model, though there may be products to embed by now, or none any more.
        begun = self._begun or (self._unproven if self._is_unproven("chroma") else None) or self._rows
        # The ids that are no product's have been counted and named: they are no surprise.
        expected = before.unmatched / before.records if before.records else 0.0
        return Move(
            self._settings,
            mode="resume" if self._is_unproven("chroma") and not before.to_move else self._wanted.mode,
            keys_from=None if self._begun else "source",
            ends=self._ends,
            stop=self._stop,
            check_model=False,
            model=self._settings.embedding_model or (begun.model if begun else None),
            max_bad_share=min(1.0, self._settings.max_bad_share + expected),
        )

    def _rows_move(self, rows: RowsOrigin) -> Move:
        return Move(
            self._settings,
            mode="resume" if self._is_unproven("rows") and not self._wanted.force else self._wanted.mode,
            ends=replace(self._ends, origin=rows),
            stop=self._stop,
            check_model=False,
            given_keys=self._ids,
            replace=self._wanted.force or bool(self._ids),
        )

    def _complete(self, move: Move) -> ExitCode:
        code = move.complete(self._observer, verify=self._wanted.verify)
        if move.summary is not None:
            self._summaries.append(move.summary)
        return code

    def _look_back(self, before: State) -> None:
        if not self._wanted.verify:
            return
        self._observer(events.StepBegun(5))
        with self._ends.engine.connect() as connection:
            after = count_products(connection, slice_of(self._ends))
            spots = spot_check(connection, self._ends.table, SPOTS)
        named = [(product.name or product.id, valid) for product, valid in spots]
        self._observer(events.LookedBack(after.embedded, before.embedded + self._gain - self._errors(), named))

    def _summarise(self, before: State, seconds: float) -> None:
        table, command = self._ends.table, None
        with self._ends.engine.connect() as connection:
            covered = coverage(connection, table)
        if self._rows is not None and (self._wanted.force or self._ids):
            # Compared with ChromaDB, the new vectors would differ, in their last bits if in nothing else.
            command = verify_command(self._settings, self._rows.open(table, "", with_metadata=False).description)
        ended = events.Migrated(
            products=before.products,
            migrated=sum(summary.counts.written for summary in self._summaries),
            embedded_before=before.embedded,
            kept=0 if self._wanted.force else before.embedded - len(self._ids),
            errors=self._errors(),
            unmatched=before.unmatched,
            active=covered.products,
            coverage=covered.share,
            seconds=seconds,
            compare_command=command,
        )
        self._observer(ended)

    def _errors(self) -> int:
        """Return how many products were quarantined; an id of Chroma without a product does not count."""
        reasons = [reasons for summary in self._summaries for reasons in summary.errors.items()]
        return sum(rows for reason, rows in reasons if reason != Reason.NO_TARGET)
