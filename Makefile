# `make grid` and `make test` are the two commands of the README.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

# Several single-threaded workers beat one that shares the cores.
export OMP_NUM_THREADS = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: grid test test-slow bench lint clean

grid: $(VENV)/.installed
	$(BIN)/python experiments/grid.py $(ARGS)

# Two at once: tests that start Ray in one process, the others in the other (tests/conftest.py). Ray lowers
# the priority of its workers, and the other process would leave them nothing.
test: export RAY_worker_niceness = 0
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "not slow and not gpu and not network" $(ARGS)

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m "slow" $(ARGS)

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/sparse_head.py $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/pip install -q "ruff>=0.17.6" "pyright>=1.1.414"
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

# pip, not uv: uv does not see the CPU build of torch where one is at hand.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) lab
