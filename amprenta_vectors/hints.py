"""Commands that hints of several rooms name."""

from __future__ import annotations

from pathlib import Path


def backfill_command() -> str:
    """Return what starts a backfill where this process was started: the script, or else the command."""
    return "python scripts/backfill.py" if Path("scripts/backfill.py").is_file() else "amprenta-vectors backfill"
