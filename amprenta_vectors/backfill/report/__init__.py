"""The page that a run leaves, and the facts that it is made of."""
