"""The plan of an index build in words, and sizes as a person reads them."""

from __future__ import annotations

from amprenta_vectors.backfill.database.index_plan import BuildPlan
from amprenta_vectors.backfill.report.timeline import to_duration


def to_size(count: float) -> str:
    """Return bytes as PostgreSQL counts them, 1024 to a kB."""
    for unit in ("B", "kB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GB" if count < 1024 else f"{count / 1024:.1f} TB"


def describe(plan: BuildPlan) -> list[str]:
    """Return what a build will take, a line each."""
    fast, slow = (to_duration(seconds) for seconds in plan.seconds)
    return [
        f"index {plan.index} ({plan.method}) on {plan.target}: {plan.rows:,} rows × {plan.dimension} dimensions",
        f"  memory: {_memory(plan)}",
        f"  workers: {plan.workers} beside the session that builds, limited by {plan.workers_limit} "
        "(AMPRENTA_INDEX_WORKERS)",
        f"  time: {fast} to {slow}" if fast != slow else f"  time: about {fast}",
        f"  disk: about {to_size(plan.disk_bytes)}; SQL cannot ask what is free",
    ]


def _memory(plan: BuildPlan) -> str:
    needed, given = to_size(plan.needed_bytes), to_size(plan.memory_bytes)
    if plan.fits:
        return f"about {needed} of the {given} of maintenance_work_mem"
    # A tenth and two of the 1 MB blocks that the graph takes more.
    enough = plan.needed_bytes * 11 // 10 // 1024**2 + 2
    outcome = (
        "it does not fit: what is beyond is built on disk, up to ten times slower"
        if plan.method == "hnsw"
        else "it may not fit, and PostgreSQL then refuses the build and says how much it needs"
    )
    return (
        f"about {needed} needed, maintenance_work_mem is {given}: {outcome}. AMPRENTA_MAINTENANCE_WORK_MEM={enough}MB "
        f"gives it to this build alone; SQL cannot ask how much the server has (shared_buffers {plan.shared_buffers}, "
        f"effective_cache_size {plan.effective_cache_size})"
    )
