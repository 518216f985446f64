"""``python -m amprenta_vectors`` is ``amprenta-vectors``."""

from amprenta_vectors.cli import main

main(prog_name="amprenta-vectors")
