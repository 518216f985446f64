"""A move: both ends opened, the run, the index, the proof and the report.

Commands, Python callers and executors call it. Nothing here needs a terminal or the main thread, and nothing prints.
"""
