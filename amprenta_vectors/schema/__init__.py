"""Vector tables as data, those that ship and those a user declares, and how a source key finds its row."""
