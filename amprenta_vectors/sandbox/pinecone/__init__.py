"""A Pinecone index on loopback: a real server, over HTTP and gRPC, that the unmodified Pinecone client talks to.

For tests, benchmarks and the demo. It keeps Pinecone's limits, messages and error codes, and fails on request.
"""

from amprenta_vectors.extras import needing

with needing("sandbox"):
    from amprenta_vectors.sandbox.pinecone.faults import Fault, Faults
    from amprenta_vectors.sandbox.pinecone.server import PineconeEmulator

__all__ = ["Fault", "Faults", "PineconeEmulator"]
