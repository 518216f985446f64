"""Write the endpoints of the service, as its OpenAPI document has them, into docs/http.md below its head."""

from pathlib import Path
from typing import Any

from amprenta_vectors.service.app import create_app
from amprenta_vectors.service.reference import to_markdown

PAGE = Path(__file__).parents[1] / "docs" / "http.md"
MARK = "<!-- From here on written by scripts/http_reference.py -->\n\n"


def renew(page: str) -> str:
    """Return the page with the endpoints as they are now."""
    # Nothing is asked of the system, only of the application what it would take.
    nothing: Any = None
    return page.partition(MARK)[0] + MARK + to_markdown(create_app(nothing, None, 1.0).openapi())


if __name__ == "__main__":
    PAGE.write_text(renew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
