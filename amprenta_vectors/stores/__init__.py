"""The stores that an application queries, behind `protocol.VectorStore`, and all that they share."""
