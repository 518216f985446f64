"""What a sandbox of the tests holds, and its own record of how it was last started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROWS = 200


def record(folder: Path, **changes: Any) -> None:
    """Write into a sandbox's own record what a former start would have."""
    file = folder / "sandbox.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
