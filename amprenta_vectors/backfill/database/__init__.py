"""What a run asks of its database: its load, its permissions, its index and how long one takes."""
