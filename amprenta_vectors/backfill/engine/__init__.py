"""One run in one process: planner, workers, leases, orders, and how a step is tried again."""
