"""The rows of the table itself, embedded from their own texts."""
