"""Pinecone, over gRPC and REST."""
