# Everything that a newcomer or CI types. `make demo` and `make test` set up what they need in .venv.

PYTHON ?= python3
# rag_chunks, documents, products or column
SYSTEM ?= rag_chunks
BIN := .venv/bin
READY := .venv/.ready
# Processes among which the tests are shared out, which wait more than they work; each has a PostgreSQL server of its own.
WORKERS ?= 4
# long or short: how often `make torture` strikes and how much `make journey` moves
FORM ?= long
# A third of a migration's processor time goes into compiling what it imports, where compiled modules may not be kept.
PYTEST = env -u PYTHONDONTWRITEBYTECODE AMPRENTA_TEST_FORM=$(FORM) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: setup demo test check lint types imports torture journey benchmark clean

setup: $(READY)

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $$($(PYTHON) --version) found, 3.11 or newer expected; make PYTHON=python3.12 …" >&2; exit 2; }
	@echo "setting up .venv (once, about a minute) …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" amprenta-vectors sandbox demo --system $(SYSTEM)

test: $(READY)
	@$(MAKE) --no-print-directory -j2 check
	$(PYTEST)

check: lint types imports

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports --no-logo

# Kills, crashes and storms at random moments; AMPRENTA_TORTURE_SEED=random draws other ones than the last time.
torture: $(READY)
	$(PYTEST) -m torture

# The demos, sandboxes and an installed wheel.
journey: $(READY)
	$(PYTEST) -m journey

benchmark: $(READY)
	$(BIN)/python benchmarks/budget.py

clean:
	rm -rf .venv .tox .sandbox build dist *.egg-info
