"""Other libraries on the same rows, in a process with their own dependencies: `query.py` starts it and asks.

A line ``library number`` on standard input asks that library query ``number``; the answer is a line with its
milliseconds and how many rows came back.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable

import numpy as np

TOP_K = 10


def open_langchain(url: str, ef_search: int) -> Callable[[list[float]], int]:
    """Open langchain-postgres on the application's own table."""
    from langchain_core.embeddings import DeterministicFakeEmbedding
    from langchain_postgres import PGEngine, PGVectorStore
    from langchain_postgres.v2.indexes import HNSWQueryOptions

    store = PGVectorStore.create_sync(
        PGEngine.from_connection_string(url.replace("postgresql://", "postgresql+psycopg://")),
        DeterministicFakeEmbedding(size=256),
        "rag_chunks",
        id_column="chunk_id",
        content_column="content",
        embedding_column="embedding",
        metadata_json_column="metadata",
        index_query_options=HNSWQueryOptions(ef_search=ef_search),
    )
    return lambda vector: len(store.similarity_search_with_score_by_vector(vector, k=TOP_K))


def open_vecs(url: str, ef_search: int) -> Callable[[list[float]], int]:
    """Open vecs on its own table, which `query.py` has filled with the same rows."""
    import vecs

    collection = vecs.create_client(url.replace("postgresql://", "postgresql+psycopg2://")).get_collection("rows")
    return lambda vector: len(
        collection.query(vector, limit=TOP_K, include_value=True, include_metadata=True, ef_search=ef_search)
    )


def main() -> None:
    """Answer queries until standard input ends."""
    url, queries, ef_search = sys.argv[1:]
    vectors = np.load(queries).tolist()
    libraries = {"langchain": open_langchain(url, int(ef_search)), "vecs": open_vecs(url, int(ef_search))}
    for line in sys.stdin:
        library, number = line.split()
        began = time.perf_counter()
        found = libraries[library](vectors[int(number)])
        print((time.perf_counter() - began) * 1000, found, flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
