"""The removal of a simple vector store's old files, and the check that they may go."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy.engine import Engine

from amprenta_vectors.backends.protocol import Source
from amprenta_vectors.backends.simple.backup import backup_of
from amprenta_vectors.backends.simple.cipher import decrypted
from amprenta_vectors.backends.simple.folder import COMMITTED, FILES, METADATA_FILE, locked
from amprenta_vectors.backends.simple.raw_check import RawDocument, find_incomplete
from amprenta_vectors.backends.simple.source import SimpleOrigin
from amprenta_vectors.backfill.progress import proof, quarantine, runs
from amprenta_vectors.backfill.progress.events import RunEvent
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.verify.contents import ContentCheck, Contents
from amprenta_vectors.moves.ends import scope_of
from amprenta_vectors.reasons import STILL_WRITTEN
from amprenta_vectors.schema.slice import open_slice
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.systems.documents.stores import said_of

NAMED = 3
"""The most ids that a refusal names."""


@dataclass
class Removal:
    """A store whose files are to go; ``absent`` is how many of its documents had no row at the last check."""

    engine: Engine
    table: VectorTable
    origin: SimpleOrigin
    name: str
    absent: int = 0

    def why_not(self) -> str | None:
        """Return why the files must stay; None if they may go."""
        try:
            with self._holding(alone=False) as folder:
                why, self.absent = self._judge(folder)
        except Exception as error:
            return said_of(error)[1]
        return why

    def remove(self) -> str | None:
        """Delete the files while nobody else can write to them; return None, or why they must stay after all."""
        try:
            with self._holding(alone=True) as folder:
                why, absent = self._judge(folder)
                if why is None and absent > self.absent:
                    why = f"{absent - self.absent:,} of its rows have gone from the table meanwhile"
                if why is None:
                    for file in FILES:
                        (folder / file).unlink(missing_ok=True)
        except Exception as error:
            return said_of(error)[1]
        return why

    @contextmanager
    def _holding(self, *, alone: bool) -> Iterator[Path]:
        folder = self.origin.folder(self.name)
        # The store is read anew, and before the lock, since reading locks the folder itself; the comparison with the
        # backup shows a change in between.
        self.origin.close()
        self.origin.store(self.name)
        with locked(folder, alone=alone):
            yield folder

    def _judge(self, folder: Path) -> tuple[str | None, int]:
        """Return why the files must stay, None if they may go, and how many documents of the store have no row."""
        verified = self._last_verified(folder)
        if isinstance(verified, str):
            return verified, 0
        run, event = verified
        if event.detail.get("missing") or event.detail.get("different"):
            return f"its comparison found differences; {self._bring_over()}", 0
        if (folder / COMMITTED).exists():
            return (
                "a change of its files was made and not finished; reading the store with VECTOR_BACKEND=simple does, "
                "and then: amprenta-vectors documents migrate --restart",
                0,
            )
        if backup_of(self.origin.root, folder, event.at) is None:
            return (
                "no backup from before its comparison is the same as its files: they have changed since, or it was "
                f"moved away; {self._bring_over()}",
                0,
            )
        source = self.origin.open(self.table, self.name, with_metadata=True)
        incomplete = self._find_incomplete(folder, source)
        if incomplete:
            return (
                f"{folder / METADATA_FILE} says more of {len(incomplete):,} documents than was read of them "
                f"({_named(incomplete)}): keep it, and report this",
                0,
            )
        found = self._compare(run, event, source)
        return self._why_of(found), len(found.absent)

    def _find_incomplete(self, folder: Path, source: Source) -> list[str]:
        """Return the documents that were not read whole: the comparison with the table relies on what was read."""
        decrypt = partial(decrypted, cipher=self.origin.cipher)
        documents: dict[str, RawDocument] = {}
        for keys, _ in source.iter_keys():
            batch = source.fetch(keys)
            columns = zip(batch.source_keys, batch.texts or (), batch.metadata or (), strict=True)
            documents |= {key: RawDocument(text, decrypt(fields or {})) for key, text, fields in columns}
        return find_incomplete(folder / METADATA_FILE, self.origin.key, documents)

    def _last_verified(self, folder: Path) -> tuple[Run, RunEvent] | str:
        scope = scope_of(self.table, self.name)
        with self.engine.connect() as connection:
            if runs.unfinished_run(connection, self.table.target, scope) is not None:
                return "its run is unfinished; resume it: amprenta-vectors documents migrate --resume"
            verified = proof.last_verified(connection, self.table.target, scope)
            reasons = quarantine.quarantined_keys(connection, self.table.target, scope)
        aside = [key for key, reason in reasons.items() if reason not in STILL_WRITTEN]
        if verified is None:
            return "it was not moved and verified; do both: amprenta-vectors documents migrate --restart"
        if verified[0].source != str(folder.resolve()):
            return f"what was moved and verified is {verified[0].source}, not {folder.resolve()}"
        if aside:
            return (
                f"{len(aside):,} of its documents were quarantined; they are nowhere else: "
                f"AMPRENTA_TABLE={self.table.name} amprenta-vectors errors {verified[0].id}"
            )
        return verified

    def _compare(self, run: Run, event: RunEvent, source: Source) -> Contents:
        decrypt = partial(decrypted, cipher=self.origin.cipher)
        slice_ = open_slice(self.engine, self.table, run.scope)
        with self.engine.connect() as connection:
            return ContentCheck(connection, slice_, since=event.at, decrypt=decrypt).compare(source)

    def _why_of(self, found: Contents) -> str | None:
        if found.differs:
            return (
                f"the files have another text or other metadata of {len(found.differs):,} documents than their rows "
                f"({_named(found.differs)}); {self._bring_over()}"
            )
        if found.absent and len(found.absent) == len(self.origin.store(self.name).records):
            return "the table has not one of its documents any longer: amprenta-vectors documents migrate --restart"
        return None

    def _bring_over(self) -> str:
        given = f"SIMPLE_STORE_ROOT={shlex.quote(str(self.origin.root))} AMPRENTA_TABLE={self.table.name}"
        return (
            f"{given} amprenta-vectors reconcile --namespace {shlex.quote(self.name)} brings over what changed there, "
            "and amprenta-vectors documents migrate --restart backs up and compares"
        )


def _named(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:NAMED])) + (", …" if len(ids) > NAMED else "")
