"""The limits of a run: requests, read units, cost, and the share of its keys that may be quarantined."""
