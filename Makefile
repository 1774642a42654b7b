# make demo | comparisons | test | test-cluster | test-long | gpu | lint | types | clean. Each sets up .venv first; it needs Python
# 3.11 to 3.13 and nothing else. `make gpu PYTHON=...` takes an environment as it is, and installs nothing.
# TORCH_INDEX_URL: an extra package index with CPU or CUDA builds of torch (plain PyPI brings gigabytes of CUDA).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
GIVEN := $(PYTHON)
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
BIN := .venv/bin
READY := .venv/ready
# One thread a process: spinning OpenMP threads of several ranks slow each other down.
TEST_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive WANDB_MODE=offline HF_HUB_OFFLINE=1
SCRIPTS := $(wildcard slurm/*.sh tests/slurm/*.sh configs/*/*.sh) .ci/run

.PHONY: demo comparisons test compiler test-cluster test-long gpu lint types clean

demo: $(READY)
	$(BIN)/python tools/demo_corpus.py data/kjv.jsonl
	$(BIN)/python tools/prepare_data.py data/kjv.jsonl --output data/kjv --vocab-size 8192
	bash slurm/curriculum.sh --here configs/demo.yaml
	$(BIN)/python tools/export_hf.py runs/demo runs/demo/export
	$(BIN)/python tools/report.py runs/demo --scratch configs/study/demo

comparisons: $(READY)
	bash configs/comparisons/run.sh

# The tests of tests/slurm, one after the other: each has the whole cluster. 30 minutes is a stage that never ends.
CLUSTER_TESTS := $(TEST_ENV) $(BIN)/python -m pytest -n 0 --timeout 1800 --durations 0 -v tests/slurm

test: $(READY) compiler
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/slurm -m "not long"

# The tests of the CUDA path need one, and say so each where there is none.
compiler:
	@command -v g++ >/dev/null || echo "NOT TESTED: the CUDA path: there is no g++ (apt-get install g++)" >&2

# Installs SLURM where a cluster can be; where none can, it says so and is done.
test-cluster: $(READY)
	if bash tests/slurm/possible.sh; then bash tests/slurm/install.sh && $(CLUSTER_TESTS) -m "not long"; fi

test-long: $(READY) compiler
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/slurm
	$(TEST_ENV) CUDA_TESTS_ON_CPU=1 $(BIN)/python -m pytest -n 0 tests/cuda
	if bash tests/slurm/possible.sh; then bash tests/slurm/install.sh && $(CLUSTER_TESTS); fi

# What only a GPU can tell, in MINUTES; see docs/gpu.md.
MINUTES ?= 8
OUTPUT ?= runs/gpu
gpu: $(if $(GIVEN),,$(READY))
	PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(or $(GIVEN),$(BIN)/python) tools/gpu.py --minutes $(MINUTES) --output $(OUTPUT)

lint: $(READY)
	$(BIN)/ruff check .
	for script in $(SCRIPTS); do bash -n "$$script"; done
	$(BIN)/shellcheck --external-sources $(SCRIPTS)

types: $(READY)
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# Rebuilt only when what is to be installed changes.
$(READY): pyproject.toml constraints.txt tests/s3.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "error: Python 3.11 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) --version); try make PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt $(addprefix --extra-index-url ,$(TORCH_INDEX_URL)) --editable '.[test,demo,eval,data]'
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/s3 --requirement tests/s3.txt
	touch $@
