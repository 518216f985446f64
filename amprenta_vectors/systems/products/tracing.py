"""The searches for products as runs in LangSmith, with the similarity of their hits, if ``LANGSMITH_TRACING`` is set.

Needs the package ``langsmith``, which comes with the extra ``langchain``.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from amprenta_vectors.config import Settings
from amprenta_vectors.extras import needing

log = logging.getLogger(__name__)

RUN_NAME = "product_search"
SIMILARITY = "similarity"
"""The metadata of a run that has the mean score of its hits."""


class SearchTracer:
    """Sends searches to LangSmith in a thread of the official client; what goes wrong there is logged and no more."""

    def __init__(self, settings: Settings) -> None:
        with needing("langchain"):
            from langsmith import Client
        self._project = settings.langsmith_project
        self._client = Client(
            settings.langsmith_endpoint,
            api_key=settings.require("langsmith_api_key"),
            tracing_error_callback=lambda error: log.warning("LangSmith: %s", type(error).__name__),
        )

    def record(
        self,
        text: str,
        wanted: Mapping[str, Any],
        limit: int,
        hits: Sequence[Mapping[str, Any]],
        store: str,
        began: datetime,
        ended: datetime,
    ) -> None:
        """Send one search: what was asked for, and of each hit its ``id``, ``name`` and ``score``."""
        run_id = uuid4()
        documents = [
            {
                "type": "Document",
                "page_content": hit["name"] or "",
                "metadata": {"id": hit["id"], "score": hit["score"]},
            }
            for hit in hits
        ]
        scores = [hit["score"] for hit in hits]
        about = {"store": store, "hits": len(hits), SIMILARITY: statistics.fmean(scores) if scores else None}
        try:
            # Only put into a queue: the client's thread sends it.
            self._client.create_run(
                RUN_NAME,
                {"query": text, "filter": dict(wanted), "limit": limit},
                "retriever",
                project_name=self._project,
                id=run_id,
                trace_id=run_id,
                dotted_order=began.strftime("%Y%m%dT%H%M%S%fZ") + str(run_id),
                start_time=began,
                end_time=ended,
                outputs={"documents": documents},
                extra={"metadata": about},
            )
        except Exception as error:
            # Whatever fails there, the search has its answer.
            log.warning("LangSmith: %s", type(error).__name__)

    def close(self) -> None:
        """Send what is still to be sent."""
        self._client.flush()


def open_tracer(settings: Settings) -> SearchTracer | None:
    """Return the tracer of the settings; None without ``LANGSMITH_TRACING``. Raises `ConfigError` without a key."""
    return SearchTracer(settings) if settings.langsmith_tracing else None
