"""ChromaDB, in a folder or on a server."""
