"""The tables: those of the engine, those of the five systems, and how a source key finds its row."""
