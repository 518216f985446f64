"""Real servers on loopback for the demo, the tests and a newcomer's first steps."""

from pathlib import Path

DEFAULT_FOLDER = Path(".sandbox")
