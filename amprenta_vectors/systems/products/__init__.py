"""A product catalogue: its move from ChromaDB, in which products that ChromaDB lacks are embedded."""
