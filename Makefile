# Every target sets itself up: `.venv` with what it needs, quick the second time.
PYTHON ?= python3.11
EXTRAS ?= dev,render
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRAS)

.PHONY: demo test slow lint format
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)  ## make data, train the three stages, prove that they learnt, decode, render: under 8 minutes
	$(BIN)/unils demo --out runs/demo

test: $(STAMP)  ## the fast tests: under 8 minutes on two cores
	$(BIN)/python -m pytest -n 2

slow: $(STAMP)  ## the tests that take minutes: under 25 minutes
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

