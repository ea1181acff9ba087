# Everything a person needs to type. Safe to repeat; quick the second time.
#   make demo     set up, then run the whole loop on this machine
#   make test     set up, then lint, types, import contracts and all tests
#   make install  what both use: .venv with everything that constraints.txt pins

PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS = 1

.PHONY: help install legacy mosquitto postgresql demo test test-arm64 lint fuzz benchmarks clean

help:
	@sed -n '2,4p' Makefile | cut -c3-

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@echo "Installing into .venv (about 3 minutes and 2.5 GB the first time)"
	@sh scripts/system-packages.sh venv $(PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]' --group dev
	@touch $@

# tflite-runtime needs numpy 1 and Python 3.11, so it has an environment of its own (docs/adr/0005).
legacy: .venv-legacy/.installed

.venv-legacy/.installed: pyproject.toml | install
	@sh scripts/legacy-environment.sh
	@touch $@

mosquitto:
	@sh scripts/system-packages.sh mosquitto

postgresql:
	@sh scripts/system-packages.sh postgresql

demo: install
	@$(BIN)/edgewright demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install legacy mosquitto postgresql lint
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --ignore tests/integration
	$(BIN)/pytest tests/integration

# Hostile input, other examples at every run: contracts, the Open Inference Protocol, TUF's metadata.
fuzz: install
	EDGEWRIGHT_FUZZ=5000 $(BIN)/pytest $(wildcard tests/contracts/test_fuzz.py tests/agent/test_fuzz_*.py) --timeout 0

# The agent under qemu-user in a Debian arm64 root; as root (docs/arm64.md).
test-arm64: install
	@sh scripts/test_arm64.sh

# The agent's figures: about 45 minutes on a machine with nothing else to do. With --quick each takes a minute.
benchmarks: install mosquitto
	$(BIN)/python benchmarks/agent_overhead.py
	$(BIN)/python benchmarks/agent_footprint.py
	$(BIN)/python benchmarks/update_gap.py
	$(BIN)/python scripts/benchmark_docs.py

clean:
	rm -rf .venv .venv-legacy .mypy_cache .ruff_cache .pytest_cache .hypothesis
