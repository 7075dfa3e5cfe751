# `make grid` and `make test` are the two commands of the README.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

# Several single-threaded workers beat one that shares the cores.
export OMP_NUM_THREADS = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: grid test test-fast test-slow bench lint docs clean

grid: $(VENV)/.installed
	$(BIN)/python experiments/grid.py $(ARGS)

# What CI runs. Two at once: tests that start Ray in one process, the others in the other (tests/conftest.py). Ray
# lowers the priority of its workers, and the other process would leave them nothing.
test: export RAY_worker_niceness = 0
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "not slow and not gpu and not network" $(ARGS)

# While one works: no Ray, no model trained for long.
test-fast: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 -m "not ray and not long and not slow and not gpu and not network" $(ARGS)

# Kills, lost nodes, full disks, coverage of intervals, whole paths over real collections.
test-slow: $(VENV)/.installed
	$(BIN)/pip install -q -e ".[slow]"
	$(BIN)/python -m pytest -m "slow" $(ARGS)

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/sparse_head.py $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/pip install -q -e ".[dev]"
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

# The site, into ./site; no page is fetched from anywhere.
docs: $(VENV)/.installed
	$(BIN)/pip install -q -e ".[docs]"
	$(BIN)/mkdocs build --strict

# pip, not uv: uv does not see the CPU build of torch where one is at hand.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) lab
