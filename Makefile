# `make quickstart` and `make test` work on a fresh clone: each sets up its own virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/quickstart
SOURCE := build/source
PYTEST := $(BIN)/python -m pytest -q --durations=15
VERSIONS := 3.11 3.12 3.13
# A worker for each core, at most eight: each holds a JAX of its own.
PARALLEL := -n logical --maxprocesses 8 --dist loadgroup

.PHONY: quickstart test test-long test-slow parity parity-latest docs versions science dist source check clean

quickstart: $(VENV)/.installed
	$(BIN)/jaxtune train configs/quickstart.py --run-dir $(RUN) --overwrite
	@echo "Open $(RUN)/report.html in a browser."

# The quick tests: a few minutes on two cores. Most tests compile with XLA's cheapest passes.
test: check
	$(PYTEST) $(PARALLEL)

# The rest but the slow ones. What is equal to the bit is so with the compiler as users have it.
# Both parts run, also where the first one fails.
test-long: $(VENV)/.installed-test
	$(PYTEST) $(PARALLEL) -m "long and not slow and not parity and not bits"; first=$$?; \
	XLA_FLAGS= $(PYTEST) $(PARALLEL) -m "bits and not slow and not parity" && exit $$first

test-slow: $(VENV)/.installed-test
	XLA_FLAGS= $(PYTEST) $(PARALLEL) -m slow

# The peers at the releases that constraints-parity.txt pins; `parity-latest` takes the newest, in an environment of its own.
parity: $(VENV)/.installed-parity
	XLA_FLAGS= $(PYTEST) -m parity

parity-latest: PIP := $(VENV)-latest/bin/pip install --quiet --disable-pip-version-check --upgrade
parity-latest:
	$(PYTHON) -m venv $(VENV)-latest
	$(PIP) torch
	$(PIP) -e '.[test,parity]'
	$(VENV)-latest/bin/python -m pytest -q -m parity

# The tests on every Python that is promised and can be found here, with the newest packages for each; others are named.
versions:
	@for version in $(VERSIONS); do \
		export PYENV_VERSION=$$version; python=python$$version; \
		if ! $$python -c '' 2>/dev/null; then echo "Python $$version: not here"; continue; fi; \
		echo "Python $$version"; \
		$$python -m venv $(VENV)-$$version && \
		$(VENV)-$$version/bin/pip install --quiet --disable-pip-version-check -e '.[test]' && \
		$(VENV)-$$version/bin/python -m pytest -q $(PARALLEL) || exit 1; \
	done

# API pages from docstrings, options from the config classes; a link that leads nowhere is an error.
docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict
	@echo "Open build/docs/index.html in a browser."

# The experiments on the chapter's claims that need no network; each goes on where it was stopped.
SCIENCE := $(filter-out experiments/24-% experiments/28-%,$(sort $(wildcard experiments/1[6-9]-*/run.py experiments/2[0-9]-*/run.py)))
science: $(VENV)/.installed
	@for script in $(SCIENCE); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# What is published names its repository: make dist URL=https://host/owner/jaxtune
dist: $(VENV)/bin/python source
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt build
	$(BIN)/python -m build --outdir dist $(SOURCE)

# The last commit as it is published: with the repository's address, which only its publisher knows.
source:
	@test -z "$(URL)" || echo "$(URL)" | grep -Eq '^https://[A-Za-z0-9.-]+\.[a-z]+(/[A-Za-z0-9._~-]+)+$$' || { \
		echo "URL is '$(URL)': give the repository's address, like https://host.org/owner/jaxtune"; exit 1; }
	@rm -rf $(SOURCE) && mkdir -p $(SOURCE) && git archive HEAD | tar -x -C $(SOURCE)
	@if test -n "$(URL)"; then printf '\n[project.urls]\n%s = "%s"\n%s = "%s"\n%s = "%s"\n%s = "%s"\n' \
		Homepage $(URL) Issues $(URL)/issues Changelog $(URL)/blob/HEAD/CHANGELOG.md Documentation $(URL)/tree/HEAD/docs \
		>> $(SOURCE)/pyproject.toml; \
	else echo "No URL=https://host/owner/jaxtune is given: these distributions will have no project URLs."; fi

check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --level error
	$(BIN)/python -m pytest -q -m "" tests/test_layers.py

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

$(VENV)/.installed-parity: pyproject.toml constraints.txt constraints-parity.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints-parity.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-parity.txt -e '.[test,parity]'
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed

clean:
	rm -rf $(VENV) $(VENV)-* build dist .cache .pytest_cache .ruff_cache
