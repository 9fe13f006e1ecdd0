# setup: .venv with everything; demo, test, check and bench use it.
PYTHON ?= python3
# The CPU build where the index has one under this exact version; on a GPU machine: make setup TORCH=torch
TORCH ?= torch==2.13.0
VENV := .venv
STAMP := $(VENV)/.installed

# Interprets and compiles the kernels in the tests, without a GPU; 200 MB, so that the demo does without.
TRITON ?= triton==3.7.1
KERNELS_STAMP := $(VENV)/.kernels-installed

LMMS := .venv-lmms
LMMS_STAMP := $(LMMS)/.installed

# The oldest transformers that pyproject.toml declares. OLDEST_TORCH=torch==2.11.0 where the index has it for the machine.
OLDEST := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.installed
OLDEST_TRANSFORMERS := $(shell sed -n 's/.*"transformers>=\([0-9.]*\)".*/\1/p' pyproject.toml)
OLDEST_TORCH ?= $(TORCH)
OLDEST_TESTS := $(addprefix tests/test_,dart_command.py llava_golden.py llava_model.py llava_next.py llava_next_golden.py \
	more_families.py pruner*.py qwen.py qwen_golden.py qwen_switch.py)

.PHONY: setup setup-lmms demo test test-lmms test-oldest check bench bench-gpu

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet "$(TORCH)"
	$(VENV)/bin/pip install --quiet -e ".[dev,tiny]"
	touch $(STAMP)

# lmms-eval brings torchvision and a hundred packages: they stay out of .venv. torchvision must fit torch, so that both are chosen together.
setup-lmms: $(LMMS_STAMP)

$(LMMS_STAMP): pyproject.toml
	test -x $(LMMS)/bin/python || $(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/pip install --quiet "$(TORCH)" -e ".[lmms-eval]" pytest==9.2.0
	touch $(LMMS_STAMP)

demo: setup
	$(VENV)/bin/python scripts/demo.py

test: $(KERNELS_STAMP)
	$(VENV)/bin/python -m pytest

$(KERNELS_STAMP): $(STAMP)
	test "$$(uname -s)" != Linux || $(VENV)/bin/pip install --quiet "$(TRITON)"
	touch $(KERNELS_STAMP)

test-lmms: setup-lmms
	$(LMMS)/bin/python -m pytest -p lmms_eval_dart.testing tests/test_lmms_*.py

test-oldest: $(OLDEST_STAMP)
	$(OLDEST)/bin/python -m pytest $(OLDEST_TESTS)

$(OLDEST_STAMP): pyproject.toml
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet "$(OLDEST_TORCH)"
	$(OLDEST)/bin/pip install --quiet "transformers==$(OLDEST_TRANSFORMERS)" -e ".[dev]"
	touch $(OLDEST_STAMP)

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy dart

# Needs a CUDA GPU.
bench-gpu:
	bash scripts/bench_gpu.sh

bench: setup
	$(VENV)/bin/python -m benchmarks.selection
	$(VENV)/bin/python -m benchmarks.latency
