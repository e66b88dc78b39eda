# Everything here makes its own environment: Python 3.11 or newer is all it needs.
PYTHON ?= python3
GATEWAY ?= webchat
SEED ?= 1
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-s3 test-systemd campaign bench lint types imports clean

demo: $(VENV)/.installed  ## the main job, live: sandbox, daemon, documents (GATEWAY=webmessaging for the other gateway)
	$(BIN)/attachd demo --gateway $(GATEWAY)

test: $(VENV)/.installed-dev lint types imports  ## lint, types, import rules and all tests
	$(BIN)/pytest -n 4  # most of them wait for somebody: four at a time, whatever the number of cores

test-s3: $(VENV)/.installed-dev  ## uploads to S3 servers of others, which it installs into a cache folder
	$(BIN)/pytest tests/s3 -m s3

test-systemd: $(VENV)/.installed-dev  ## attachd under a real systemd; as root, with systemd-container and mmdebstrap
	ATTACHD_TEST_SYSTEMD=1 $(BIN)/pytest tests/systemd

campaign: $(VENV)/.installed-dev  ## kills, power cuts and faults by the thousand; minutes, as root; SEED= repeats a run
	$(BIN)/python -m tests.campaign --seed $(SEED)

bench: $(VENV)/.installed-bench  ## every figure of docs/performance.md, measured anew; ten minutes
	$(BIN)/python -m benchmarks
	$(BIN)/python docs/make-performance > docs/performance.md
	$(BIN)/python docs/make-performance --plot

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

imports: $(VENV)/.installed-dev
	$(BIN)/lint-imports

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "attachd needs Python 3.11 or newer; try: make PYTHON=python3.11 demo" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
