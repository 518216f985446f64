"""What works at one run in one process: planner, workers, leases, orders, and how steps are tried again."""
