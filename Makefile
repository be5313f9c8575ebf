# `make demo` and `make test` do everything on a machine with Python >= 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
# The demo needs little; the tests need every library that something here works with.
DEMO := $(VENV)/.installed-demo
TEST := $(VENV)/.installed-test
DOCS := $(VENV)/.installed-docs

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast lint types docs docs-serve check clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(TEST) ## Make the virtual environment

$(VENV)/.installed-%: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar on $(PIP_ARGS) -c constraints.txt -e '.[$*]'
	touch $@

demo: $(DEMO) ## Tune SmolLM2-135M on a small sentiment task, about 5 minutes on 2 cores
	$(BIN)/dfo-lora demo

test: $(TEST) ## Run all tests
	$(BIN)/python -m pytest

test-fast: $(TEST) ## Run the tests that take a few seconds at most
	$(BIN)/python -m pytest -m "not slow"

lint: $(TEST) ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TEST) ## Check types
	$(BIN)/mypy

docs: $(DOCS) ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: $(DOCS) ## Show the documentation at http://localhost:8000, anew after each change
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --strict

check: lint types docs test ## Everything CI checks

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
