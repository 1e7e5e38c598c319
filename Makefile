# Two commands matter: `make run` serves, `make test` tests. Both install what they need into .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := loadtests/peers/asgi loadtests/peers/plain loadtests/peers/chroma
STEPS ?= 200000# of a simulation
TESTS ?= 5# in parallel: half of the time of a test is spent waiting
NATIVE := $(wildcard shm/native/* app/api/codec/native/*) shm/layout.py shm/build.py app/api/codec/build.py setup.py pyproject.toml
C_FILES := $(wildcard shm/native/*.[ch] app/api/codec/native/*.[ch] loadtests/*/*.c)

.DEFAULT_GOAL := help
.PHONY: help run install test lint types format check ci lock manual bench faults load soak image peers runbook clean

help: ## print this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: install ## serve on 127.0.0.1:8000 with embedded defaults
	$(BIN)/gunicorn -c gunicorn.conf.py app.main:app

install: $(VENV)/installed ## create .venv with pinned dependencies and the native core

# Bytecode is kept in .venv, also where the environment forbids it elsewhere: without it, each process compiles all tests.
test: export PYTHONDONTWRITEBYTECODE :=
test: export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/bytecode
test: $(VENV)/tested ## run every test
	$(BIN)/python -m pytest -n $(TESTS) --dist worksteal

lint: $(VENV)/tested ## run ruff and clang-format
	$(BIN)/ruff check --output-format concise
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)

types: $(VENV)/tested ## run mypy --strict
	$(BIN)/mypy

format: $(VENV)/tested ## format all code
	$(BIN)/ruff check --fix --output-format concise
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(C_FILES)

ci: lint types test ## run what continuous integration runs

bench: install ## measure the cost of requests against a floor and peers; options in ARGS, such as ARGS=--check
	$(BIN)/python -m loadtests.bench $(ARGS)

faults: install ## disturb a server in every known way, for hours; options in ARGS, such as ARGS="'worker killed' --scale 0.1"
	$(BIN)/python -m loadtests.faults $(ARGS)

load: $(VENV)/tested ## load a server with a thousand requests a second, events and a day's mix; judge latency and CPU; options in ARGS
	$(BIN)/python -m loadtests.load.sustained $(ARGS)

soak: $(VENV)/tested ## simulate workers, controllers and a clock at length; options in ARGS, such as ARGS="--seed 7 --steps 500"
	$(BIN)/python -m tests.simulation --steps $(STEPS) $(ARGS)

peers: $(PEERS:%=%/.venv/installed) ## create the environments of the servers that `make bench` compares with

image: install ## build the container image without a daemon, run and check it; as root, needs buildah and debootstrap
	deploy/image/build
	$(BIN)/python deploy/image/check.py

manual: install ## regenerate the files that follow from settings, layout, native contracts and rules
	$(BIN)/python -m shm.layout_markdown > docs/layout.md
	$(BIN)/python -m shm.native_stubs > shm/_native.pyi
	$(BIN)/python -m shm.native_stubs app/api/codec/native/api.h > app/api/codec/_native.pyi
	$(BIN)/python -m mlsdm.manual markdown > docs/configuration.md
	$(BIN)/python -m mlsdm.manual development > config/default.yaml
	$(BIN)/python -m mlsdm.manual production > config/production-ready.yaml
	$(BIN)/python -m deploy.k8s.prometheus_rule > deploy/k8s/prometheus-rule.yaml

runbook: $(VENV)/tested ## run docs/runbook.md, and record the output under its commands
	$(BIN)/python -m tests.runbook docs/runbook.md --record --strict

lock: $(VENV)/tested ## resolve the dependencies again; commit the result
	$(BIN)/uv pip compile -q pyproject.toml --group build --universal --generate-hashes --no-header --no-annotate --no-emit-index-url -o requirements.lock
	$(BIN)/uv pip compile -q pyproject.toml --group build --group dev --extra plot --extra otel --universal --generate-hashes --no-header --no-annotate --no-emit-index-url -o requirements-dev.lock

clean: ## remove everything that is built
	rm -rf $(VENV) build *.egg-info shm/_native.c app/api/codec/_native.c shm/_native*.so app/api/codec/_native*.so

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mlsdm needs Python 3.11 or newer: set PYTHON=/path/to/it" >&2; exit 1; }
	@command -v $${CC:-cc} >/dev/null || { echo "mlsdm needs a C compiler for its native core: install gcc or clang (Debian: apt install gcc libc6-dev python3-dev)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "mlsdm needs Python's venv module (Debian: apt install python3-venv)" >&2; rm -rf $(VENV); exit 1; }

loadtests/peers/%/.venv/installed: loadtests/peers/%/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r $<
	@touch $@

$(VENV)/installed: requirements.lock $(NATIVE) | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/tested: requirements-dev.lock $(VENV)/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@
