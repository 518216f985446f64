"""What a run may ask and cost, and the share of its keys that may be quarantined."""
