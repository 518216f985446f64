"""The events of a move in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from amprenta_vectors.backfill.engine.observer import IndexBuilding, MoveEvent, ignore
from amprenta_vectors.backfill.engine.run import Summary
from amprenta_vectors.backfill.progress.charges import charge_of, to_money
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.cli.index_text import describe
from amprenta_vectors.cli.printer import say
from amprenta_vectors.moves import events
from amprenta_vectors.schema.registry import PRODUCTS

SHOWN = 20
"""The most differing keys of a kind that are printed; `--output` gets them all."""


class MoveText:
    """Prints each event: results on standard output, the rest on standard error."""

    def __init__(self, more: Callable[[MoveEvent], None] = ignore) -> None:
        self._differed: Counter[str] = Counter()
        self._more = more

    def __call__(self, event: MoveEvent) -> None:
        """Print one event, if there is anything to say of it."""
        if isinstance(event, events.ComparisonStarted):
            self._differed.clear()
        for line in self._results(event):
            say(line)
        self.aside(event)
        self._more(event)

    def aside(self, event: MoveEvent) -> None:
        """Print the lines of an event that belong on standard error: of a result, only why it was refused."""
        for line in _asides(event):
            say(line, err=True)

    def _results(self, event: MoveEvent) -> Iterator[str]:
        match event:
            case events.RunEnded(summary, source_count):
                yield from _summary(summary, source_count)
            case events.PassEnded():
                yield from _pass(event)
            case events.Differed(kind, key, detail, quarantined):
                self._differed[kind] += 1
                if self._differed[kind] <= SHOWN:
                    yield f"  {kind}: {key!r}" + (f": {detail}" if detail else "") + " (quarantined)" * quarantined
            case events.Verified():
                yield from _verified(event)
            case events.ComparisonInterrupted(command):
                yield f"the comparison was interrupted; make it with: {command}"
            case events.Reported(_, (_, page)):
                yield f"report: {page} (and .json)"


def _asides(event: MoveEvent) -> Iterator[str]:
    match event:
        case events.Warned(text):
            yield f"warning: {text}"
        case events.Noticed(text):
            yield f"notice: {text}"
        case IndexBuilding(_, target):
            yield f"every row is in; building the index of {target}"
        case events.IndexPlanned(plan):
            yield from describe(plan)
        case events.IndexProgress(_, phase, done, total):
            yield f"  index: {phase}" + (f": {100 * done / total:.0f} %" if total else "")
        case events.ComparisonStarted(computed, lists):
            yield "embedding a sample again" if computed else "comparing every vector with the source"
            if not lists:
                yield "the source cannot list its ids: it is asked for those of the table's rows"
        case events.PassEnded(refused=str(refused)):
            yield f"error: {refused}"
            yield (
                "  hint: look whether it is the right source and namespace; if it is, delete the rows by a statement "
                "of your own"
            )
        case events.NotReported(run, reason):
            again = f"amprenta-vectors report {run} --output FOLDER"
            yield f"warning: no report was written: {reason}; make it with: {again}"


def _summary(summary: Summary, source_count: int | None) -> Iterator[str]:
    counts, run = summary.counts, summary.run
    rate = summary.written_here / summary.seconds if summary.seconds else 0.0
    ending = "interrupted" if summary.interrupted else run.state
    yield (
        f"run {run.id} {ending}: {counts.written:,} rows written ({summary.written_here:,} by this process in "
        f"{summary.seconds:.1f} s, {rate:,.0f}/s), {counts.skipped:,} found filled or gone"
    )
    if not run.planned_keys and run.keys_from == "table" and source_count:
        yield (
            f"  no row of {run.target} waits for an embedding, and the source has {source_count:,} vectors; "
            "to insert rows: --keys-from source"
        )
    for reason, number in summary.errors.items():
        yield f"  quarantined: {number:,} {reason}"
    if run.read_units:
        charge = charge_of(run)
        cost = "" if charge.cost is None else f", which cost {to_money(charge.cost)}"
        yield f"  {charge.name}: {charge.spent:,}{cost}"
    for name in summary.indexes_built:
        yield f"  index built: {name}"
    if not summary.ended_it and not summary.written_here and run.state == "finished":
        yield f"  it had ended before; to list the source once more: {_command_of(run)} --restart"
    if summary.interrupted:
        yield f"  resume with: {_command_of(run)} --resume"


def _command_of(run: Run) -> str:
    """Return the command that starts and resumes such a run."""
    if run.source_kind == "simple":
        return "amprenta-vectors documents migrate"
    product = run.vector_table == PRODUCTS.name and run.source_kind in ("chroma", "rows")
    return "amprenta-vectors products migrate" if product else "amprenta-vectors backfill"


def _pass(ended: events.PassEnded) -> Iterator[str]:
    begin = "dry run, nothing was changed" if ended.run is None else f"run {ended.run}"
    yield f"{begin}: {ended.equal:,} rows equal, {ended.written:,} written, of them {ended.replaced:,} replaced"
    gone = ended.gone
    if gone is not None and gone.gone:
        yield (
            f"  gone at the source: {gone.gone:,} rows, {gone.deleted:,} deleted, "
            f"{gone.emptied:,} of the application's own emptied"
        )
    for reason, number in ended.quarantined.items():
        yield f"  listed: {number:,} {reason}"
    if ended.quarantined and ended.run is not None:
        yield f"  row by row: amprenta-vectors errors {ended.run}"
    if ended.advice is not None:
        yield f"  {ended.advice}"
    if ended.interrupted:
        yield "  interrupted; resume with: amprenta-vectors reconcile"


def _verified(found: events.Verified) -> Iterator[str]:
    for kind, number in found.counts.items():
        if number > SHOWN:
            yield f"  … {number - SHOWN:,} more {kind}; amprenta-vectors verify --output FILE lists them all"
    differing = ", ".join(f"{number:,} {kind}" for kind, number in found.counts.items())
    equal, how = "every vector is equal, bit for bit", ""
    if found.computed:
        equal, how = "each is as near as one model's are, and no row with a text lacks its vector", ", embedded again"
    verdict = differing if any(found.counts.values()) else equal
    yield f"verified {found.compared:,} vectors of {found.source}{how}: {verdict}"
