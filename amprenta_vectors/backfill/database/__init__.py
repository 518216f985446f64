"""The database's side of a run: load, permissions, the index and how long building it takes, an estimate."""
