"""Every statement on the progress tables: the only door to them. The database's clock is the only one they go by."""
