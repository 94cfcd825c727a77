# `make serve` and `make test` do all set-up themselves; `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# For machines that want a CPU-only index of torch: make setup TORCH_INDEX_URL=…
TORCH_INDEX_URL ?=
PIP_FLAGS := $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL),)
PYTEST := $(BIN)/python -m pytest
HYPOTHESIS_PROFILE ?= ci

.DEFAULT_GOAL := help
.PHONY: help setup serve demo test check fmt test-unit test-integration test-e2e test-deep bench docs lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv and install everything (again only when something changed)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3,11) <= sys.version_info[:2] <= (3,12) else "Python 3.11 or 3.12 is needed, this is " + sys.version.split()[0] + "; try: make setup PYTHON=python3.11")'
	@if [ ! -x $(BIN)/python ]; then echo "• making $(VENV)"; \
	  $(PYTHON) -m venv $(VENV) 2>/tmp/venv.$$$$ || { cat /tmp/venv.$$$$; rm -rf $(VENV); \
	  echo "• $(PYTHON) has no venv module here; installing it (python3-venv)"; \
	  $$( [ "$$(id -u)" = 0 ] || echo sudo ) sh -c 'apt-get update -q && apt-get install -y -q python3-venv' && $(PYTHON) -m venv $(VENV); }; fi
	@echo "• installing packages (the first time takes a few minutes)"
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=24' --disable-pip-version-check
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on $(PIP_FLAGS) -c constraints.txt -e '.[dev]' | { grep -vE '^Requirement already|^  (Using|Downloading)' || true; }
	@$(BIN)/python -c 'import control_plane, torch, tritonclient.grpc'
	@touch $(STAMP)

serve: setup ## start Triton, Redis and the API here; the demo models answer
	@$(BIN)/python -m exporters publish-missing --checkpoints checkpoints --repository model_repository
	@exec $(BIN)/python -m control_plane serve

demo: setup ## a tour of the whole API against a running server
	@$(BIN)/python examples/model_serving_demo.py

test: check test-unit test-integration test-e2e ## everything that needs neither root nor Debian packages

check: setup ## ruff, mypy, import contracts, file length, lock and generated files current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	$(BIN)/python tests/support/repository_rules.py

fmt: setup ## format, and fix what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-unit: setup ## pure tests, no sockets
	HYPOTHESIS_PROFILE=$(HYPOTHESIS_PROFILE) $(PYTEST) tests/unit

test-integration: setup ## the real Triton and the real Redis
	HYPOTHESIS_PROFILE=$(HYPOTHESIS_PROFILE) $(PYTEST) tests/integration

test-e2e: setup ## the installed command, with faults; says what it skipped and why
	HYPOTHESIS_PROFILE=$(HYPOTHESIS_PROFILE) $(PYTEST) tests/e2e

test-deep: setup ## all tests, with free seeds and more examples
	HYPOTHESIS_PROFILE=deep $(PYTEST) tests

bench: setup ## the benchmarks (docs/performance.md)
	$(BIN)/python -m benchmarks.mc_dropout_cost
	$(BIN)/python -m benchmarks.hot_path

docs: setup ## regenerate the generated files (requirements.txt, docs/configuration.md)
	$(BIN)/python docs/generate.py

lock: setup ## take the newest releases that pyproject.toml allows into constraints.txt
	$(BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager -e '.[dev]'
	$(BIN)/python -m pip freeze --exclude-editable | grep -vE '^(pip|setuptools|wheel)==' | sed 's/+cpu$$//' > constraints.txt

clean: ## remove what was built or started here (not the models)
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis data
