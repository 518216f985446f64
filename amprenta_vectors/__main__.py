"""``python -m amprenta_vectors`` is ``amprenta-vectors``."""

from amprenta_vectors.entry import run

run()
