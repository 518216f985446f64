"""A product catalogue: its move from ChromaDB, with the products embedded that are not there."""
