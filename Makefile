# `make run` and `make test` need nothing but Python ≥ 3.10 and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# A torch that the machine's own Python already has (a GPU owner's CUDA build) is used as it is.
OWN_TORCH := $(shell $(PYTHON) -c "import torch; print(1)" 2>/dev/null)

.PHONY: run test check format lint types bench bench-operators results kernels clean
.DEFAULT_GOAL := help

help:            ## this list
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*##/ —/'

$(BIN)/.ready: pyproject.toml constraints.txt
ifeq ($(OWN_TORCH),1)
	$(PYTHON) -m venv --system-site-packages $(VENV)
	grep -v -E '^(torch|triton|numpy)==' constraints.txt > $(VENV)/constraints.txt
else
	$(PYTHON) -m venv $(VENV)
	cp constraints.txt $(VENV)/constraints.txt
endif
	$(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[dev]'
	@touch $@

run: $(BIN)/.ready    ## create the environment and run the quick suite on the CPU
	$(BIN)/attnbench run suites/quick.yaml --device cpu

test: $(BIN)/.ready   ## create the environment and pass the tests
	$(BIN)/python -m pytest -n 2

check: format lint types test   ## format, lint, types, tests

format: $(BIN)/.ready
	$(BIN)/ruff format --check .

lint: $(BIN)/.ready
	$(BIN)/ruff check .

types: $(BIN)/.ready
	$(BIN)/mypy

kernels: $(BIN)/.ready  ## compile every kernel for sm_80, sm_90, sm_100 (no GPU needed): registers, memory, spills
	$(BIN)/python benchmarks/kernels.py

clean:           ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
