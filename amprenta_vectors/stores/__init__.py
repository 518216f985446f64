"""What an application queries: one file a backend, behind `protocol.VectorStore`."""
