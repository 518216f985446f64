"""Pinecone's filter language, and its translation to bound SQL."""
