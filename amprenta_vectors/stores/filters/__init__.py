"""Pinecone's filter language, and the bound SQL that it becomes."""
