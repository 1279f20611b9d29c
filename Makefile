# `make quickstart` and `make test` work on a fresh clone: each sets up its own virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/quickstart
PYTEST := $(BIN)/python -m pytest -q --durations=15
# A worker for each core, at most eight: each holds a JAX of its own.
PARALLEL := -n logical --maxprocesses 8 --dist loadgroup

.PHONY: quickstart test test-slow parity check clean

quickstart: $(VENV)/.installed
	$(BIN)/jaxtune train configs/quickstart.py --run-dir $(RUN) --overwrite
	@echo "Open $(RUN)/report.html in a browser."

test: check
	$(PYTEST) $(PARALLEL)

test-slow: $(VENV)/.installed-test
	$(PYTEST) $(PARALLEL) -m slow

parity: $(VENV)/.installed-parity
	$(PYTEST) -m parity

check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --level error
	$(BIN)/python -m pytest -q tests/test_layers.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "jaxtune needs Python 3.11 or newer; call: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing jaxtune and its pinned dependencies into $(VENV) (one to three minutes, 1.2 GB) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing jaxtune, its pinned dependencies and the test tools into $(VENV) (one to three minutes) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-parity: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,parity]'
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache
