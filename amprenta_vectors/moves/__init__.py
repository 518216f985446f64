"""A move: both ends opened, the run, the index, the proof and the report.

What commands, Python callers and executors call. Nothing here needs a terminal or the main thread, and nothing prints.
"""
