# make demo | test | lint | docs | bench | soak | setup      each sets up first what is missing
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint fix docs bench soak sizes reader-table clean
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# One thread per test process: two processes share two cores without fighting.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
JOBS ?= 2

help:
	@echo 'make demo   set up, read a handbook once, answer from it, score 1,000 applicants (offline)'
	@echo 'make test   set up, run every test      make lint   ruff, mypy --strict, import and size guards'
	@echo 'make docs   regenerate the reference    make bench  the measurements of docs/benchmarks.md'
	@echo 'make soak   20 minutes of random arrivals, cancels and errors (ARGS="--minutes 5 --device cuda")'

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'preread needs Python 3.11 or newer: make setup PYTHON=python3.12'; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY)

demo: setup
	@$(BIN)/preread demo

test: setup
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --timeout 300 $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TEST_ENV) $(BIN)/python -m pytest tests/architecture tests/docs $(ARGS)

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python tools/reference.py

bench: setup
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

soak: setup
	$(TEST_ENV) $(BIN)/python tools/soak.py $(ARGS)

reader-table: setup
	$(BIN)/python -m training.evaluate

sizes:
	@wc -l $$(git ls-files 'preread/*.py') | sort -n | tail -25

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
