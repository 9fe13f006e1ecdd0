# setup: .venv with everything; demo, test, check and bench use it.
PYTHON ?= python3
# The CPU build where the index has one under this exact version; on a GPU machine: make setup TORCH=torch
TORCH ?= torch==2.13.0
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: setup demo test check bench

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet "$(TORCH)"
	$(VENV)/bin/pip install --quiet -e ".[dev,tiny]"
	touch $(STAMP)

demo: setup
	$(VENV)/bin/python scripts/demo.py

test: setup
	$(VENV)/bin/python -m pytest

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy dart

bench: setup
	$(VENV)/bin/python -m dart.bench.selection
