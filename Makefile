# The project's few commands. `make` alone lists them.
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
UI_PORT ?= 5000
RUNS ?= demo/runs
JOBS ?= 3
READY := $(VENV)/.ready
# of each process that tests start: many run at a time, and threads that wait for each other take twice as long
ONE_THREAD := OMP_NUM_THREADS=1
BIN := $(VENV)/bin
# the tools are run as modules: with a borrowed torch their scripts may lie in the lender's environment
LINT_IMPORTS := from importlinter.cli import lint_imports_command as lint; lint()

export VENV PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long test-fast bench bench-gpu check docs ui clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: $(READY)  ## make the environment in .venv (torch first, everything as constraints.txt pins it)
	@echo "setup: $(VENV) is up to date. Next: make demo, or make test"

$(READY): setup.cfg constraints.txt pyproject.toml .ci/setup.sh
	@bash .ci/setup.sh
	@touch $@

demo: $(READY)  ## simulated archive -> shards -> two pretrainings -> fine-tuning -> comparison, in demo/
	@PYTHON="$(abspath $(BIN)/python)" bash slurm/demo.sh

test: $(READY)  ## all tests
	@echo "test: all tests, $(JOBS) files at a time (JOBS=1: in order), some minutes; those that need a local Slurm or"
	@echo "      real imagery say so where they are skipped"
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
	@echo "test: passed. Next: make check before a commit"

test-long: $(READY)  ## all tests at full size: a thousand scenes instead of forty (some more minutes)
	@LONG_TESTS=1 $(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-fast: $(READY)  ## the tests that take less than about ten seconds each and need no Slurm
	@$(BIN)/python -m pytest -m "not slow and not slurm"

bench: $(READY)  ## speed as ratios measured side by side (BENCH="cells jp2" for some)
	@$(BIN)/python -m tests.bench $(BENCH)

bench-gpu: $(READY)  ## a ViT-L in bf16 on this machine's GPU: share of the peak, data wait (GPU="--try" without one)
	@$(BIN)/python -m tests.bench.gpu $(GPU)

check: $(READY)  ## formatting, lint, types, import contracts
	@echo "check: ruff check, ruff format, mypy --strict, import contracts"
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy --strict
	@$(BIN)/python -c "$(LINT_IMPORTS)" --config setup.cfg
	@echo "check: passed"

docs: $(READY)  ## write docs/configuration.md from the configuration models
	@$(BIN)/python .ci/docs.py

ui: $(READY)  ## MLflow on the runs of the demo (RUNS=folder for others, UI_PORT=5000)
	@bash .ci/ui.sh "$(RUNS)" "$(UI_PORT)"

clean:  ## remove caches, builds and the demo's output (keeps .venv)
	rm -rf demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find pipeline preprocessing training tests -name __pycache__ -type d -prune -exec rm -rf {} +
