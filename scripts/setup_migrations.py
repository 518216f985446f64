"""Set the models system up: ``init``, ``status``, ``run``, ``setup-models``; `amprenta-vectors setup` as a script."""

from amprenta_vectors.entry import run

if __name__ == "__main__":
    run("setup", name="setup_migrations.py")
