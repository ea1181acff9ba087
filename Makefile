# Everything a person needs to type. Safe to repeat; quick the second time.
#   make demo     set up, then run the whole loop on this machine
#   make test     set up, then lint, types, import contracts and all tests
#   make install  what both use: .venv with everything that constraints.txt pins

PYTHON ?= python3
BIN := .venv/bin
SERVICES ?= mosquitto postgresql victoria-metrics
export OMP_NUM_THREADS = 1
# Otherwise each of the hundreds of processes that tests start would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install legacy services demo test test-arm64 lint fuzz benchmarks clean

help:
	@sed -n '2,4p' Makefile | cut -c3-

install: .venv/.installed

.venv/bin/python:
	@sh scripts/system-packages.sh venv $(PYTHON)
	@$(PYTHON) -m venv .venv

# Of 19,000 files the tests import 4,000: those are compiled here, once, and the others never.
.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing into .venv (about 3 minutes and 2.5 GB the first time)"
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[all]' --group dev
	@$(BIN)/python -c 'import fastapi, litert_torch, onnxscript, scipy.stats, sqlalchemy' >/dev/null 2>&1 || true
	@touch $@

# tflite-runtime needs numpy 1 and Python 3.11, so it has an environment of its own (docs/adr/0005).
legacy: .venv-legacy/.installed

.venv-legacy/.installed: pyproject.toml constraints-legacy.txt | .venv/bin/python
	@sh scripts/legacy-environment.sh
	@touch $@

# What tests start besides.
services: | .venv/bin/python
	@sh scripts/system-packages.sh $(SERVICES)

demo: install
	@$(BIN)/edgewright demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Three workers for two cores: hubs, brokers and devices wait most of their time.
test:
	@$(MAKE) --no-print-directory --jobs 3 lint legacy services
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# Hostile input, other examples at every run: contracts, the Open Inference Protocol, TUF's metadata.
fuzz: install
	EDGEWRIGHT_FUZZ=5000 $(BIN)/pytest $(wildcard tests/contracts/test_fuzz.py tests/agent/test_fuzz_*.py) --timeout 0

# The agent under qemu-user in a Debian arm64 root; as root (docs/arm64.md).
test-arm64: install
	@sh scripts/test_arm64.sh

# The agent's figures: about 45 minutes on a machine with nothing else to do. With --quick each takes a minute.
benchmarks: install services
	$(BIN)/python benchmarks/agent_overhead.py
	$(BIN)/python benchmarks/agent_footprint.py
	$(BIN)/python benchmarks/update_gap.py
	$(BIN)/python scripts/benchmark_docs.py

clean:
	rm -rf .venv .venv-legacy .mypy_cache .ruff_cache .pytest_cache .hypothesis
