# Everything a person needs to type. Safe to repeat; quick the second time.
#   make demo     set up, then run the whole loop on this machine
#   make test     set up, then lint, types, import contracts and all tests
#   make install  what both use: .venv with everything that constraints.txt pins

PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS = 1

.PHONY: help install legacy mosquitto demo test test-arm64 lint fuzz benchmarks clean

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

demo: install
	@$(BIN)/edgewright demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install legacy mosquitto lint
	$(BIN)/pytest --numprocesses 2 --dist loadfile --ignore tests/integration
	$(BIN)/pytest tests/integration

fuzz: install
	EDGEWRIGHT_FUZZ=5000 $(BIN)/pytest tests/contracts/test_fuzz.py tests/agent/test_fuzz_oip.py --timeout 0

benchmarks: install
	$(BIN)/python benchmarks/agent_overhead.py
	$(BIN)/python scripts/benchmark_docs.py

clean:
	rm -rf .venv .venv-legacy .mypy_cache .ruff_cache .pytest_cache .hypothesis
