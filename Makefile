# Every target sets up .venv first, and again only when pyproject.toml or constraints.txt has changed.
#   make demo [ARGS=--fresh]   make test   make lint   make bench|study|audit ONLY=name   make docs
# TORCH_INDEX: an extra package index for torch, e.g. https://download.pytorch.org/whl/cpu where the
# default index would bring the CUDA build and its gigabytes.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.PHONY: help setup demo test lint bench study audit docs clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
TORCH_INDEX ?=
ARGS ?=
ONLY ?=
WORKERS ?= 2

help:
	@sed -n '2p' Makefile | cut -c3-

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@started=$$SECONDS
	python=
	for name in python3.11 python3 python; do
	  if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
	    python=$$name; break
	  fi
	done
	if [ -z "$$python" ]; then
	  echo "Python 3.11 with its venv module was not found (tried python3.11, python3, python)." >&2
	  echo "Install it first, e.g. 'apt-get install python3.11 python3.11-venv', then run make again." >&2
	  exit 1
	fi
	if ! $(BIN)/python -c 'import pip' 2>/dev/null; then
	  echo "Creating $(VENV) with $$($$python --version)" >&2
	  "$$python" -m venv --clear $(VENV)
	fi
	echo "Installing the pinned packages into $(VENV) (a few minutes the first time)" >&2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[dev]' >&2
	# A later set-up that finds everything in place must not overwrite the figure of the first one.
	[ -e $(VENV)/install_seconds ] || echo $$((SECONDS - started)) > $(VENV)/install_seconds
	touch $@

demo: setup
	exec $(BIN)/momkd demo --out out/demo $(ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) $(ARGS)

bench: setup
	exec $(BIN)/python -m benchmarks $(ONLY) $(ARGS)

study: setup
	exec $(BIN)/python -m benchmarks.study $(ONLY) $(ARGS)

audit: setup
	exec $(BIN)/python -m benchmarks.audit $(ONLY) $(ARGS)

docs: setup
	$(BIN)/python -m momkd_fl.cli.docs

clean:
	rm -rf $(VENV) out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
