# Everything that a newcomer or CI types. `make demo` and `make test` set up what they need in .venv.

PYTHON ?= python3
# rag_chunks, documents or products
SYSTEM ?= rag_chunks
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test check torture benchmark clean

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

test: check
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

torture: $(READY)
	AMPRENTA_TORTURE_KILLS=100 AMPRENTA_TORTURE_UPGRADE_KILLS=50 AMPRENTA_TORTURE_CRASHES=10 AMPRENTA_TORTURE_STALL=30 \
	  AMPRENTA_TORTURE_WRITER_KILLS=50 $(BIN)/python -m pytest -m torture tests

benchmark: $(READY)
	$(BIN)/python benchmarks/budget.py

clean:
	rm -rf .venv .tox .sandbox build dist *.egg-info
