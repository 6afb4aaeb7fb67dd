# Front door of Janus. `make help` lists the targets.
#
# Needs python >= 3.11, make, a C++ compiler and a Python package index. Everything is installed into .venv, again
# whenever pyproject.toml changes. docs/install.md says what the variables below are for.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
# torch is installed first, so that the version and the build (CPU or CUDA) are chosen here and not by a resolver.
TORCH ?= torch==2.13.0
# URL of an extra package index to take torch from, such as one with CPU-only builds; empty uses the default index.
TORCH_INDEX ?=
# Which build of UCX and CuPy: cpu, cu12 or cu13; taken from the NVIDIA driver when there is one.
EXTRA ?= $(shell nvidia-smi 2>/dev/null | sed -nE 's/.*CUDA Version: (12|13)\..*/cu\1/p' | head -1 | grep . || echo cpu)
# How the demo is run; see `janus demo --help`.
DEMO_ARGS ?=
TEST_ARGS ?=
# Such as --only expert-kill --repeat 5; see `python -m benchmarks.chaos --help`.
CHAOS_ARGS ?=
# Such as --trace requests.csv --start 3600 --shrink 16; see `python -m benchmarks.autoscale --help`.
AUTOSCALE_ARGS ?=

BIN := $(VENV)/bin
SERVE := $(VENV)/.stamp-$(EXTRA)
DEV := $(VENV)/.stamp-$(EXTRA)-dev
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile
CODE := src services tests benchmarks

.PHONY: help
help: ## list the targets
	@echo "usage: make TARGET"; echo
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do \
	  printf '  %-16s %s\n' "$$name" "$$text"; done

.PHONY: demo
demo: install ## start a small cluster and stream text from the bundled model
	@$(BIN)/janus demo $(DEMO_ARGS)

.PHONY: install
install: $(SERVE) ## create .venv and install Janus in it, to serve

.PHONY: develop
develop: $(DEV) ## the same, with what tests, linters and benchmarks need

.PHONY: test
test: develop ## run the tests (minutes), two at a time but for those that look at times; TEST_ARGS go to pytest
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not alone and not slow and not gpu" $(TEST_ARGS) || test $$? -eq 5
	$(BIN)/python -m pytest -m "alone and not slow and not gpu" $(TEST_ARGS) || test $$? -eq 5

.PHONY: lint
lint: develop ## check style and types
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

.PHONY: format
format: develop ## format the code and fix what can be fixed
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

.PHONY: bench
bench: develop ## measure serving; writes benchmarks/results/serving.json
	$(BIN)/python -m benchmarks.serving

.PHONY: bench-models
bench-models: develop ## measure every model family beside transformers; writes benchmarks/results/models.json
	$(BIN)/python -m benchmarks.serving.families

.PHONY: bench-scheduling
bench-scheduling: develop ## measure the schedulers; writes benchmarks/results/scheduling.json
	$(BIN)/python -m benchmarks.scheduling

.PHONY: bench-placement
bench-placement: develop ## measure the placement policies; writes benchmarks/results/placement.json
	$(BIN)/python -m benchmarks.placement

.PHONY: domains
domains: develop ## change the text under load and see experts re-placed; writes benchmarks/results/domains.json (10 minutes)
	$(BIN)/python -m benchmarks.chaos.domains

.PHONY: bench-start
bench-start: develop ## measure starts from a large checkpoint; writes benchmarks/results/start.json
	$(BIN)/python -m benchmarks.start --write

.PHONY: bench-exchange
bench-exchange: develop ## measure the exchange on the testbed; writes benchmarks/results/exchange.json (Linux, root)
	$(BIN)/python -m benchmarks.exchange
	$(BIN)/python -m benchmarks.exchange.ladder

.PHONY: bench-statistics
bench-statistics: develop ## measure what sampling the routing costs; writes benchmarks/results/statistics.json
	$(BIN)/python -m benchmarks.statistics

.PHONY: bench-loading
bench-loading: develop ## measure what loading replicas costs dispatches; writes benchmarks/results/loading.json
	$(BIN)/python -m benchmarks.loading --write

.PHONY: bench-simulator
bench-simulator: develop ## hold the simulator against a real cluster; writes benchmarks/results/simulator.json
	$(BIN)/python -m benchmarks.simulator

.PHONY: bench-planning
bench-planning: develop ## time the planner's search and its tables; writes benchmarks/results/planning.json
	$(BIN)/python -m benchmarks.planning

.PHONY: bench-transport
bench-transport: develop ## measure links beside ucxx and plain sockets; writes benchmarks/results/transport.json
	$(BIN)/python -m benchmarks.transport --record

.PHONY: paper
paper: develop ## the figures of the paper, simulated beside ours; writes benchmarks/results/paper.json
	$(BIN)/python -m benchmarks.paper

.PHONY: testbed
testbed: develop ## several nodes on this machine with a slower network between them: try it (Linux, root)
	@$(BIN)/python -m benchmarks.testbed check

.PHONY: soak
soak: develop ## 64 streams for three minutes, then overload; writes benchmarks/results/soak.json (slow)
	$(BIN)/python -m benchmarks.load.soak

.PHONY: chaos
chaos: develop ## faults under load, each many times at random moments; writes benchmarks/results/chaos.json (slow)
	$(BIN)/python -m benchmarks.chaos $(CHAOS_ARGS)
	$(BIN)/python -m benchmarks.chaos.table

.PHONY: chaos-soak
chaos-soak: develop ## 200 random joins, leaves, kills and moves under load; writes benchmarks/results/chaos-soak.json (slow)
	$(BIN)/python -m benchmarks.chaos.soak $(CHAOS_ARGS)

.PHONY: autoscale
autoscale: develop ## replay a day of two minutes, autoscaled and not; writes benchmarks/results/autoscale.json (Linux, root; 10 minutes)
	$(BIN)/python -m benchmarks.autoscale $(AUTOSCALE_ARGS)

.PHONY: fuzz
fuzz: develop ## fuzz the HTTP schema and the UCX port (slow)
	@$(PIP) --quiet -e '.[$(EXTRA),dev,fuzz]'
	$(BIN)/python -m pytest -m slow -k fuzz $(TEST_ARGS)

.PHONY: clean
clean: ## remove .venv and everything that was built or cached
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage build dist
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +

$(SERVE): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is too old: Janus needs python >= 3.11; run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "[1/3] creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "[2/3] installing $(TORCH) for $(EXTRA) (hundreds of MB; slow only the first time)"
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) '$(TORCH)'
	@echo "[3/3] installing Janus and what it needs"
	@$(PIP) -e '.[$(EXTRA)]'
	@rm -f $(VENV)/.stamp-*; touch $@

$(DEV): $(SERVE)
	@echo "installing what tests, linters and benchmarks need"
	@$(PIP) -e '.[$(EXTRA),dev]'
	@touch $@
