"""The report of a run: the page, and the facts that it is made of."""
