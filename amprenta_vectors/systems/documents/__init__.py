"""Simple vector stores, a folder a user: their move, its way back, and the removal of their files."""
