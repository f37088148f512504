# `make submit.zip`: everything, from the environment to the entry. `make check`: linters, types and quick tests, before a commit.
# `make test`: every test. `make numerics`: those that compare results of models, computed as on a processor without AVX.
SHELL := /bin/bash -euo pipefail
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# some shells forbid Python to keep what it compiled: each of forty commands would compile thousands of modules anew
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/bytecode
UV := .cache/uv
LMMS := .cache/lmms/bin
SECURITY := .cache/security/bin
# torch by what the NVIDIA driver runs: CUDA 13 from 580 on, CUDA 12 from 525 on; for the CPU where there is none
DRIVER := $(shell nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | sed -n '1s/^\([0-9]\+\)\..*/\1/p')
TORCH := $(shell [ 0$(DRIVER) -ge 580 ] && echo cuda || { [ 0$(DRIVER) -ge 525 ] && echo cuda12 || echo cpu; })
# what only some machines want: `make setup EXTRAS="slurm ocr fuzz"`, or EXTRAS in the environment
EXTRAS ?=
LOCKS := requirements/common.lock requirements/torch-$(TORCH).lock $(EXTRAS:%=requirements/%.lock)
EMPTY :=
MADE := $(VENV)/.made-from-$(subst $(EMPTY) ,+,$(strip $(TORCH) $(EXTRAS)))

.PHONY: setup submit.zip rehearsal test numerics coverage lint secrets format docs lock lmms clean
.DEFAULT_GOAL := submit.zip

# `snakemake ARGUMENTS`, alone in this folder: the lock of this file goes with the processes that hold it, so a lock that a killed
# Snakemake left behind may be removed
ALONE = @flock --nonblock --conflict-exit-code 75 .cache/running bash -c ' \
	  test -z "$$(ls .snakemake/locks 2>/dev/null)" || snakemake --unlock --quiet all; \
	  exec snakemake $(1)' || { status=$$?; \
	  test $$status != 75 || echo "error: another make, or a job it left behind, is still running here" >&2; exit $$status; }

submit.zip: setup
	$(call ALONE,submit.zip output/reports/index.html)

# the whole workflow at the real sizes, with random weights, before anything is downloaded: docs/rehearsal.md
rehearsal: setup
	$(call ALONE,submit.zip --configfile workflow/config/rehearsal.yaml)
	python -m toolkit rehearsal forecast

# a process a core, each test file in one of them: fixtures of a file are made once; in their order, since the longest come last
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

test: setup
	OMP_NUM_THREADS=1 python -m pytest $(PARALLEL)

# before each commit: linters, types, and the tests that need no model
check: lint
	OMP_NUM_THREADS=1 python -m pytest $(PARALLEL) tests/test_*.py tests/assets tests/benchmarks tests/config tests/docs \
	  tests/report tests/requirements tests/scales tests/evaluate/test_compare.py tests/evaluate/test_contamination.py

numerics: setup
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default DNNL_MAX_CPU_ISA=SSE41 python -m pytest $(PARALLEL) -m numerics

# does nothing when the environment was made from these very locks
setup: $(MADE)

# uv finds Python 3.11 on the machine or fetches it
$(MADE): $(LOCKS) | $(UV)/bin/uv
	test -x $(BIN)/python || $(UV)/bin/uv venv --quiet --python 3.11 $(VENV)
	$(UV)/bin/python requirements/install.py $(BIN)/python $(LOCKS)
	rm -f $(VENV)/.made-from-*
	touch $@

# an environment with lmms-eval, in .cache/lmms: what `make setup` installs, with the versions that the harness needs
lmms: $(LOCKS) requirements/lmms.lock | $(UV)/bin/uv
	test -x $(LMMS)/python || $(UV)/bin/uv venv --quiet --python 3.11 .cache/lmms
	$(UV)/bin/python requirements/install.py $(LMMS)/python $(LOCKS)
	$(UV)/bin/uv pip install --quiet --python $(LMMS)/python --no-deps --require-hashes \
	  --build-constraints requirements/common.lock --requirement requirements/lmms.lock
	$(UV)/bin/uv pip install --quiet --python $(LMMS)/python --no-deps --editable .

$(UV)/bin/uv: requirements/uv.lock
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found: install Python 3 with venv (Debian: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(UV)
	$(UV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock

# every test, and which lines of the toolkit they ran
coverage: setup
	OMP_NUM_THREADS=1 python -m pytest $(PARALLEL) --cov=toolkit --cov-report=term:skip-covered

lint: setup docs $(SECURITY)/detect-secrets
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check Snakefile workflow
	snakemake --lint
	hadolint Dockerfile
	@PATH=$(CURDIR)/$(SECURITY):$$PATH .ci/vulnerabilities 10

# a maintained set of rules beside our own (S4), over the repository and the packed entry, if there is one
secrets: $(SECURITY)/detect-secrets
	$(SECURITY)/python .ci/secrets
	test ! -f submit.zip || $(SECURITY)/python .ci/secrets submit.zip

# what looks for secrets and vulnerabilities, in an environment of its own
$(SECURITY)/detect-secrets: requirements/security.lock | $(UV)/bin/uv
	test -x $(SECURITY)/python || $(UV)/bin/uv venv --quiet --python 3.11 .cache/security
	$(UV)/bin/uv pip sync --quiet --python $(SECURITY)/python --require-hashes $<
	touch $@

format: setup
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

# the site of docs/ in .cache/site; a broken link is an error
docs: setup
	mkdocs build --strict

lock: setup
	python requirements/lock.py

clean:
	rm -rf input submit.zip .snakemake
	git clean -fdxq output
