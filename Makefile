# Every target does all of its own set-up: a fresh Debian 12 needs python3 (3.11 or newer) with pip
# and venv, gcc, make and git, and nothing more.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python
# How many test processes run side by side.
TEST_WORKERS ?= 2
PYTEST := $(PYTHON) -m pytest -n $(TEST_WORKERS) --dist worksteal -q
# The tests meet the hot path compiled, as an installation has it. What a compiled build does not
# allow (the marker `interpreted`), and these again, meet the sources as they are.
IN_COMPILED := cd build/compiled && ../../
INTERPRETED_TESTS := tests/core tests/link tests/node/test_applying.py tests/node/test_writing.py \
  tests/e2e/test_crashes.py
# What runs on an event loop: `make test-all` runs it again on the standard library's.
LOOP_TESTS := tests/e2e tests/interop tests/node tests/nbdserver tests/link
# Seeds for `make sim`; none: new ones until it is stopped. How many processes it takes.
SEEDS ?=
JOBS ?= 2
# How long `make torture` goes on, or `make fuzz` with each of its targets (90, 10m, 2h), and the seed
# that decides what they do, if given.
DURATION ?= 1h
SEED ?=
export PATH := $(CURDIR)/.venv/bin:$(PATH):/usr/sbin:/sbin

.PHONY: help setup demo lint test test-all bench-quick bench bench-full bench-scale \
  bench-micro sim torture fuzz clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: ## virtual environment, Python packages, Debian packages (quick when done)
	@deploy/setup/setup.sh

demo: setup ## two nodes on this machine: replicate, kill one during writes, fail over, copy back
	@$(PYTHON) deploy/demo/demo.py

lint: setup ## format, lint and types
	@ruff format --check .
	@ruff check .
	@mypy

test: setup ## lint, types and the tests: at most 12 minutes on two cores
	@deploy/setup/run-steps.sh "make test" \
	  "beside: compile" "deploy/setup/compile.sh" \
	  "format" "ruff format --check ." \
	  "lint" "ruff check ." \
	  "types" "mypy" \
	  "interpreted" "$(PYTEST) -m 'not slow and interpreted' tests" \
	  "sources" "$(PYTEST) -m 'not slow and not interpreted' $(INTERPRETED_TESTS)" \
	  "wait for: compile" "" \
	  "tests" "$(IN_COMPILED)$(PYTEST) -m 'not slow and not interpreted'"

test-all: setup ## everything: at most 60 minutes on two cores
	@deploy/setup/run-steps.sh "make test-all" \
	  "beside: compile" "deploy/setup/compile.sh" \
	  "format" "ruff format --check ." \
	  "lint" "ruff check ." \
	  "types" "mypy" \
	  "interpreted" "$(PYTEST) -m interpreted tests" \
	  "sources" "$(PYTEST) -m 'not slow and not interpreted' $(INTERPRETED_TESTS)" \
	  "wait for: compile" "" \
	  "tests" "$(IN_COMPILED)$(PYTEST) -m 'not interpreted'" \
	  "asyncio" "export REPL_EVENT_LOOP=asyncio; $(IN_COMPILED)$(PYTEST) -m \
	    'not slow and not interpreted' $(LOOP_TESTS)"

bench-quick: ## first speed figure: beside a C program and qemu's mirror, copies compared; 3 minutes
	@deploy/setup/setup.sh bench
	@deploy/setup/compile.sh
	@$(PYTHON) -m bench run quick

bench: ## about 60 cells in 15 minutes: build/bench/standard.{json,md,svg} (bench/README.md)
	@deploy/setup/setup.sh bench
	@deploy/setup/compile.sh
	@$(PYTHON) -m bench run standard

bench-full: ## all rows on all who can take part, under two hours: build/bench/full.{json,md,svg}
	@deploy/setup/setup.sh bench
	@deploy/setup/compile.sh
	@$(PYTHON) -m bench run full

bench-scale: ## what grows with volumes, clients, dirty blocks; how long changes of state take
	@deploy/setup/setup.sh bench
	@deploy/setup/compile.sh
	@$(PYTHON) -m bench scale

bench-micro: setup ## what the Python between two system calls costs (bench/README.md)
	@deploy/setup/compile.sh
	@$(IN_COMPILED)$(PYTHON) -m pytest -q bench/micro.py bench/micro_nbd.py --benchmark-only \
	  --benchmark-columns=min,median,ops

sim: setup ## simulated faults until stopped, or make sim SEEDS=1..1000
	@deploy/setup/compile.sh
	@$(IN_COMPILED)$(PYTHON) -m tests.sim --jobs $(JOBS) $(if $(SEEDS),--seeds $(SEEDS))

torture: setup ## real nodes under random kills, stops, cuts and full disks: make torture DURATION=2h SEED=7
	@deploy/setup/compile.sh
	@$(IN_COMPILED)$(PYTHON) -m tests.torture --duration $(DURATION) $(if $(SEED),--seed $(SEED))

# An hour for each target would be most of a night.
fuzz: setup ## hostile bytes for every decoder: make fuzz DURATION=10m SEED=7 TARGET=nbd-handshake JOBS=2
	@deploy/setup/setup.sh fuzz
	@$(PYTHON) -m tests.fuzz $(if $(filter file,$(origin DURATION)),,--duration $(DURATION)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(JOBS),--jobs $(JOBS)) $(addprefix --target ,$(TARGET))

clean: ## remove everything that set-up and tests made here
	@rm -rf .venv .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	  .benchmarks .coverage .coverage.* htmlcov
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
