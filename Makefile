# `make run` and `make test` need nothing but Python ≥ 3.10 and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# A torch that the machine's own Python already has (a GPU owner's CUDA build) is used as it is.
OWN_TORCH := $(shell $(PYTHON) -c "import torch; print(1)" 2>/dev/null)

RARE := altair|debugpy|mypy|networkx|pip|playwright|setuptools|tests?

.PHONY: run test browser-test fleet-test own-gate check format lint types bench bench-operators results readme notebook ci-baseline gate-study statistics soak kernels gpu-test gpu-bench clean
.DEFAULT_GOAL := help

help:            ## this list
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*##/ —/'

# With a torch of one's own that lies in a virtual environment --system-site-packages does not reach it: the .pth does.
# Bytecode is made on all cores, which pip does on one. What is hardly ever imported gets its own when it is, and a file
# that is for no Python of this version has none.
$(BIN)/.ready: pyproject.toml constraints.txt
ifeq ($(OWN_TORCH),1)
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(PYTHON) -c "import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])" > $$(echo $(VENV)/lib/python3*/site-packages)/own-torch.pth
	grep -v -E '^(torch|triton|numpy)==' constraints.txt > $(VENV)/constraints.txt
else
	$(PYTHON) -m venv $(VENV)
	cp constraints.txt $(VENV)/constraints.txt
endif
	$(BIN)/python -m pip install --quiet --no-compile --constraint $(VENV)/constraints.txt --editable '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 -x '/($(RARE))/' $(VENV)/lib || true
	@touch $@

run: $(BIN)/.ready    ## create the environment and run the quick suite on the CPU
	$(BIN)/attnbench run suites/quick.yaml --device cpu

# worksteal keeps the tests of a file together, so that what they share is made once.
test: $(BIN)/.ready   ## create the environment and pass the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

browser-test: $(BIN)/.ready  ## pass the tests of the HTML report in Chromium, which is installed from Debian where it is missing
	$(BIN)/python -m tests.browser

fleet-test: $(BIN)/.ready  ## pass the tests of fleets on a local cluster of Ray and of Slurm, which are installed where they are missing
	$(BIN)/python -m tests.fleet

own-gate: $(BIN)/.ready  ## this project's own gate, tier 0; what this machine cannot repeat (another torch) is said and fails nothing
	gate=$$(mktemp -d); trap 'rm -rf "$$gate"' EXIT; OMP_NUM_THREADS=1 \
	  $(BIN)/attnbench gate suites/ci.yaml --against $(REFERENCE)/ci --device cpu --out "$$gate/run"

check: format lint types test   ## format, lint, types, tests

format: $(BIN)/.ready
	$(BIN)/ruff format --check .

lint: $(BIN)/.ready
	$(BIN)/ruff check .

types: $(BIN)/.ready
	$(BIN)/mypy

kernels: $(BIN)/.ready  ## compile every kernel for sm_80, sm_90, sm_100 (no GPU needed): machine code, analytic times
	$(BIN)/python -m benchmarks.kernels

# A GPU machine's own Python runs the tests as it is, with what it lacks unpacked from WHEELS=<folder of .whl files>.
GPU_PYTHON := $(if $(filter 1,$(OWN_TORCH)),$(PYTHON),$(BIN)/python)

gpu-test: $(if $(filter 1,$(OWN_TORCH)),,$(BIN)/.ready)  ## every impl on a CUDA device against its reference (OUT_DIR=folder, LIMIT_S=600, PROCESSES=12, WHEELS=folder)
	@if [ -n "$(WHEELS)" ]; then $(GPU_PYTHON) -m pip install -q --no-index --no-deps --upgrade --target .wheels $(WHEELS)/*.whl; fi
	@if $(GPU_PYTHON) -c "import torch; raise SystemExit(not torch.cuda.is_available())"; then \
	  PYTHONPATH=.wheels:$$PYTHONPATH $(GPU_PYTHON) -m tests.gpu_job $(or $(OUT_DIR),results/gpu-test) \
	    tests/test_gpu.py tests/test_gpu_measuring.py --limit $(or $(LIMIT_S),600) --processes $(or $(PROCESSES),12); \
	else echo "gpu-test: no CUDA device is available to torch here, so no GPU test was run."; fi

gpu-bench: $(if $(filter 1,$(OWN_TORCH)),,$(BIN)/.ready)  ## a suite on a CUDA device, or on with a run of it (SUITE=gpu-first, OUT_DIR=folder, LIMIT_S=600, GPU=name, PROCESSES=12, WHEELS=folder)
	@if [ -n "$(WHEELS)" ]; then $(GPU_PYTHON) -m pip install -q --no-index --no-deps --upgrade --target .wheels $(WHEELS)/*.whl; fi
	@if $(GPU_PYTHON) -c "import torch; raise SystemExit(not torch.cuda.is_available())"; then \
	  PYTHONPATH=.wheels:$$PYTHONPATH $(GPU_PYTHON) -m benchmarks.gpu_suite \
	    $(or $(OUT_DIR),$(REFERENCE))/$(or $(GPU),gpu)-$(patsubst gpu-%,%,$(or $(SUITE),gpu-first)) \
	    --suite $(or $(SUITE),gpu-first) --limit $(or $(LIMIT_S),600) --processes $(or $(PROCESSES),12); \
	else echo "gpu-bench: no CUDA device is available to torch here, so nothing was measured."; fi

bench: $(BIN)/.ready  ## what the harness itself costs; what a crossover search saves against a grid
	$(BIN)/python benchmarks/harness.py
	$(BIN)/python benchmarks/crossover_search.py

bench-operators: $(BIN)/.ready  ## every reference on the CPU beside its cost, as a share of a matmul's rate
	$(BIN)/python benchmarks/operators.py

# One folder per machine and suite; an interrupted run continues.
REFERENCE := results/reference
MACHINE ?= cpu
results: $(BIN)/.ready  ## measure the CPU suites, one thread, into results/reference (MACHINE=name), then the pages' tables
	@export OMP_NUM_THREADS=1; for suite in sequence image channels decode extend heads dtype; do \
	  folder=$(REFERENCE)/$(MACHINE)-$$suite; \
	  if [ -d $$folder ]; then $(BIN)/attnbench run --resume $$folder --device cpu || exit 1; \
	  else $(BIN)/attnbench run $$suite --device cpu --out $$folder || exit 1; fi; \
	done; \
	[ -d $(REFERENCE)/$(MACHINE)-border ] || $(BIN)/attnbench crossover rfa --axis seq_len --low 1K --high 64K \
	  --over batch=1,2,3,4,5,6,7,8,9 --causal --query-len 1 --channels 256 --heads 8 --kv-heads 2 --device cpu \
	  --out $(REFERENCE)/$(MACHINE)-border
	$(MAKE) readme notebook

readme: $(BIN)/.ready   ## put what results/reference shows into README.md and docs/
	$(BIN)/python benchmarks/readme.py
	$(BIN)/attnbench plot $(REFERENCE)/cpu-sequence --axis seq_len --metric wall_time --format png --out docs/pictures
	$(BIN)/attnbench plot $(REFERENCE)/cpu-border --axis seq_len --over batch --metric wall_time --format png --out docs/pictures

notebook: $(BIN)/.ready  ## run examples/notebook.ipynb and store what its cells show
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.notebook

ci-baseline: $(BIN)/.ready  ## measure suites/ci.yaml into results/reference/ci, what own-gate compares with
	rm -rf $(REFERENCE)/ci
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 \
	  $(BIN)/attnbench run suites/ci.yaml --device cpu --out $(REFERENCE)/ci

statistics: $(BIN)/.ready  ## simulate how often intervals and labels are right, into docs/statistics.md (PARTS="intervals …"; minutes)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.coverage $(PARTS)

gate-study: $(BIN)/.ready  ## record how often the gate is wrong (hours; continues where it was), into docs/gate-study.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gate_study --live 20

soak: $(BIN)/.ready   ## hundreds of injected failures in one run; ten thousand mutated suites and run folders
	$(BIN)/python benchmarks/soak.py

clean:           ## remove the environment and caches
	rm -rf $(VENV) .wheels .pytest_cache .mypy_cache .ruff_cache
