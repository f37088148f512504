# `make submit.zip`: everything, from the environment to the entry. `make test`: every test.
SHELL := /bin/bash -euo pipefail
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
UV := .cache/uv
# the CUDA build of torch where an NVIDIA driver answers, the CPU build elsewhere
TORCH := $(if $(shell nvidia-smi -L 2>/dev/null),cuda,cpu)
LOCKS := requirements/common.lock requirements/torch-$(TORCH).lock

.PHONY: setup submit.zip test lint format lock clean
.DEFAULT_GOAL := submit.zip

submit.zip: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake submit.zip

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# does nothing when the environment was made from these very locks
setup: $(VENV)/.made-from-$(TORCH)

# uv finds Python 3.11 on the machine or fetches it
$(VENV)/.made-from-$(TORCH): $(LOCKS) | $(UV)/bin/uv
	test -x $(BIN)/python || $(UV)/bin/uv venv --quiet --python 3.11 $(VENV)
	$(UV)/bin/python requirements/install.py $(BIN)/python $(LOCKS)
	touch $@

$(UV)/bin/uv: requirements/uv.lock
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found: install Python 3 with venv (Debian: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(UV)
	$(UV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --lint

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

lock: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python requirements/lock.py

clean:
	rm -rf input submit.zip .snakemake
	git clean -fdxq output
