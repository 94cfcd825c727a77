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
PROCESSES ?= 2

# A Debian or Ubuntu package that Python needs and lacks here; $(1) is its name.
define apt_install
echo "• installing $(1), which $(PYTHON) needs here"; \
	[ "$$(id -u)" = 0 ] && as_root= || as_root=sudo; \
	command -v apt-get >/dev/null && { [ -z "$$as_root" ] || command -v sudo >/dev/null; } \
	  || { echo "Only an administrator can do that. Ask for: apt install $(1)"; exit 1; }; \
	$$as_root apt-get update -q && $$as_root apt-get install -y -q $(1)
endef
LIBPYTHON = $(shell $(PYTHON) -c 'import sys; print("libpython%d.%d" % sys.version_info[:2])')

.DEFAULT_GOAL := help
.PHONY: help setup serve demo test check fmt test-unit test-integration test-e2e test-deep bench bench-parts bench-peers bench-tools simulate docs lock clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv and install everything (again only when something changed)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3,11) <= sys.version_info[:2] <= (3,12) else "Python 3.11 or 3.12 is needed, this is " + sys.version.split()[0] + "; try: make setup PYTHON=python3.11")'
	@if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(call apt_install,python3-venv); fi
	@if ! $(PYTHON) -c 'import ctypes, sysconfig; ctypes.CDLL(sysconfig.get_config_var("INSTSONAME"))' 2>/dev/null \
	  && ! ls "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')"/libpython3*.so* >/dev/null 2>&1; \
	  then $(call apt_install,$(LIBPYTHON)); fi
	@test -x $(BIN)/pip || { echo "• making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "• installing packages (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=24'
	@$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]' \
	  > $(VENV)/install.log 2>&1 & pid=$$!; \
	  while kill -0 $$pid 2>/dev/null; do sleep 2; printf '\r  %-100.100s' "$$(tail -n 1 $(VENV)/install.log | tr -d '\r')"; done; \
	  printf '\r%-102s\r' ''; wait $$pid || { tail -n 30 $(VENV)/install.log; exit 1; }
	@$(BIN)/python -c 'from control_plane.embedded.layout import check_stub, find_triton; check_stub(find_triton())'
	@touch $(STAMP)

serve: setup ## start Triton, Redis and the API here; the demo models answer
	@$(BIN)/python -m exporters publish-missing --checkpoints checkpoints --repository model_repository
	@exec $(BIN)/python -m control_plane serve

demo: setup ## a tour of the whole API against a running server
	@$(BIN)/python examples/model_serving_demo.py

test: check test-unit test-integration test-e2e ## the linters and every test; needs no root

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
	HYPOTHESIS_PROFILE=$(HYPOTHESIS_PROFILE) $(PYTEST) -n $(PROCESSES) tests/unit

test-integration: setup ## the real Triton and the real Redis
	HYPOTHESIS_PROFILE=$(HYPOTHESIS_PROFILE) $(PYTEST) -n $(PROCESSES) --dist loadfile tests/integration

test-e2e: setup ## the installed command, with faults; says what it skipped and why
	HYPOTHESIS_PROFILE=$(HYPOTHESIS_PROFILE) $(PYTEST) tests/e2e

test-deep: setup ## all tests, with free seeds and more examples
	HYPOTHESIS_PROFILE=deep $(PYTEST) tests

bench: setup bench-tools ## measure against Triton itself, under 10 minutes (docs/performance.md)
	$(BIN)/python -m benchmarks.data_plane
	$(BIN)/python -m benchmarks.full_size
	$(BIN)/python -m benchmarks.batches
	$(BIN)/python -m benchmarks.queue_bound
	$(BIN)/python -m benchmarks.degrade
	$(BIN)/python -m benchmarks.overload
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.report

bench-parts: setup ## the stages of a request, Monte Carlo dropout, starts and loads, Triton's scheduler
	$(BIN)/python -m benchmarks.hot_path
	$(BIN)/python -m benchmarks.mc_dropout_cost
	$(BIN)/python -m benchmarks.embedded
	$(BIN)/python -m benchmarks.scheduler_stall

bench-tools: # the load generators; without them slower ones in Python do
	@command -v wrk >/dev/null || { $(call apt_install,wrk); } || true
	@command -v h2load >/dev/null || { $(call apt_install,nghttp2-client); } || true

simulate: setup ## do ensembles' weights learn, do experiments' statistics hold? Renews docs/{ensembles,experiments}_validation.md
	$(BIN)/python -m benchmarks.simulate --full

bench-peers: setup bench-tools ## other servers of the same model against ours; installs them into .bench/ the first time
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.report

docs: setup ## regenerate the generated files (requirements.txt, docs/configuration.md)
	$(BIN)/python docs/generate.py

lock: setup ## take the newest releases that pyproject.toml allows into constraints.txt
	$(BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager -e '.[dev]'
	$(BIN)/python -m pip freeze --exclude-editable | grep -vE '^(pip|setuptools|wheel)==' | sed 's/+cpu$$//' > constraints.txt

clean: ## remove .venv, caches and data/ (logs, the embedded Redis); models stay
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis data
