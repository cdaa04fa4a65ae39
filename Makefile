# Each target works alone, on a machine with Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin

.PHONY: demo test quick lint install dev docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   install and run the main job: pre-train a small CLIP and use it (8 minutes on 2 cores)"
	@echo "make test   install and run every test (WORKERS=2 processes)"
	@echo "make quick  the tests that take seconds"
	@echo "make lint   style and types"

# pip, not uv: constraints.txt pins the one torch that is tested. The stamp is renewed when a requirement changes.
$(VENV)/.installed-core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt tests/oracles.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/oracles.txt
	touch $@ $(VENV)/.installed-core

install: $(VENV)/.installed-core
dev: $(VENV)/.installed-dev

demo: install
	$(BIN)/ostension demo --minutes 7.8

# Two processes with a thread each: files go to whichever is free, and a file's tests stay together.
test: dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n $(WORKERS) --dist loadfile

quick: dev
	$(BIN)/python -m pytest tests -m 'not slow' -x

lint: dev
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info
