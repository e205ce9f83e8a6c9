# What can be made here; `make help` lists it. `make lab` and `make test` set up all they need.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Debian keeps ip and nft where an ordinary user's PATH does not look.
export PATH := $(PATH):/usr/sbin:/sbin

# The Python to build .venv with; unset, the first that will do. Arguments for pytest, the lab.
export PYTHON
ARGS ?=
# Tests run in so many processes, a file at a time in each; 0 runs them in one, in order.
JOBS ?= 2

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
# Named for the folder, so that a clone that was moved is noticed.
TREE := $(VENV)/.tree-$(firstword $(shell cksum <<<"$(CURDIR)"))
COMPILE := $(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-header

LAB_LEFT_OUT := Left out: a real container runtime; the lab's kubelet calls the launcher itself. As root, make test has one.
TEST_LEFT_OUT := Left out: a real container runtime (tests/runtime), which needs root.

##@ See it work

.PHONY: lab
lab: setup  ## A VPC on this machine: two nodes, 40 pods, real CNI calls, real packets
	$(PY) -m tests.lab demo $(ARGS)
	@echo "$(LAB_LEFT_OUT)"

.PHONY: test
test: setup  ## All tests; ARGS="-k wiring" for some of them
	$(PY) -m pytest -n $(JOBS) --dist loadfile $(ARGS) || { \
	  [ -n "$(CI)" ] && echo "=== Once more, alone, for this machine may be busy: what failed" && \
	  $(PY) -m pytest --last-failed --last-failed-no-failures none $(ARGS); }
	@[ "$$(id -u)" = 0 ] || echo "$(TEST_LEFT_OUT)"

##@ Work on it

.PHONY: check
check: lint test  ## All that must be green before a push: lint, then the tests

.PHONY: soak
soak: setup  ## 50,000 stories of a node's life; ARGS="--from 7000 --count 500"; a seed alone tells one
	$(PY) -m tests.stories --count 50000 $(ARGS)

.PHONY: lint
lint: setup  ## ruff, mypy --strict and the floors
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo

.PHONY: format
format: setup  ## Let ruff lay out the code and mend what it can
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

.PHONY: setup
setup: $(TREE) cni/bin/aws-cni $(VENV)/.model  ## Only what the others need first: packages, .venv, launcher, EC2 model

.PHONY: docs
docs: setup  ## Render the pages that are tables of the code
	$(PY) -m tests.house.pages

.PHONY: bench
bench: setup  ## How fast a pod is wired, beside the kernel's floor and Debian's ptp; ARGS="--quick --only NAME"
	@[ -e /usr/include/linux/rtnetlink.h ] || [ "$$(id -u)" != 0 ] || \
	  apt-get install -q -y --no-install-recommends linux-libc-dev >/dev/null
	$(PY) -m tests.bench $(ARGS)

.PHONY: churn
churn: setup  ## Thirty simulated days of pods: free /28s, dense against random choice, drawn for the docs
	$(PY) -m tests.bench.churn

.PHONY: readme
readme: setup  ## Run the lab and paste what it shows into the README
	$(PY) -m tests.lab demo | $(PY) -m tests.house.paste README.md

.PHONY: clean
clean:  ## Forget what was built; the sources stay
	rm -rf $(VENV) build dist cni/bin reconciler/providers/ec2_model
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .lab

##@ Ship it

.PHONY: release
release: setup $(VENV)/.release  ## The wheels for x86_64 and aarch64, and the source archive, in dist/
	rm -rf dist
	VPCLEDGER_WHEEL=x86_64 $(PY) -m hatchling build --target wheel
	VPCLEDGER_WHEEL=aarch64 $(PY) -m hatchling build --target wheel
	$(PY) -m hatchling build --target sdist

.PHONY: lock
lock: $(VENV)/.release  ## Lock anew what pyproject.toml asks for, with hashes
	$(COMPILE) pyproject.toml --output-file requirements.lock
	$(COMPILE) pyproject.toml --group dev --constraint requirements.lock --output-file requirements-dev.lock
	$(COMPILE) --group release --constraint requirements-dev.lock --output-file requirements-release.lock

.PHONY: help
help:  ## This list
	@awk 'BEGIN { FS = ":.*  ## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z]+:.*  ## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

# --------------------------------------------------------------------------- stamps, made once

.PHONY: machine
machine:
	@deploy/machine >/dev/null
	@[ ! -e $(VENV) ] || $(PY) -c pass 2>/dev/null || { \
	  echo "$(VENV) was made with a Python that this user cannot run; say 'make clean' and go on." >&2; \
	  exit 1; }

$(VENV)/.wheels: requirements-dev.lock | machine
	@echo "Installing the locked wheels into $(VENV)"
	[ -x $(PY) ] || "$$(deploy/machine)" -m venv $(VENV)
	$(PIP) install --require-hashes --requirement requirements-dev.lock
	touch $@

$(TREE): pyproject.toml $(VENV)/.wheels | machine
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

cni/bin/aws-cni: cni/launcher.c cni/build.py $(VENV)/.wheels
	@echo "Compiling the launcher"
	$(PY) -m cni.build

$(VENV)/.model: reconciler/providers/prune.py $(VENV)/.wheels
	@echo "Pruning botocore's EC2 model"
	$(PY) -m reconciler.providers.prune
	touch $@

$(VENV)/.release: requirements-release.lock $(VENV)/.wheels
	$(PIP) install --require-hashes --requirement requirements-release.lock
	touch $@
