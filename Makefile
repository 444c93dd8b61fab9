# Every target works from a fresh clone: the first one makes .venv and installs dptrain there (several GB, minutes).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint docs bench accuracy sabotage clean

help:
	@echo "make install  virtual environment in $(VENV) with dptrain and all its extras"
	@echo "make demo     private training on handwritten digits, in minutes on two CPU cores"
	@echo "make test     ruff, mypy, import-linter and pytest (PYTEST_ARGS=... to choose)"
	@echo "make lint     ruff, mypy and import-linter only"
	@echo "make docs     the documentation as a site, at http://127.0.0.1:8000"
	@echo "make bench    the private step against the plain one: time and memory as ratios"
	@echo "make accuracy private against plain detectors at epsilon 1 to 8: hours; it resumes where it was stopped"
	@echo "make sabotage plant every known bug in turn: the tests must catch it"
	@echo "make clean    remove $(VENV), caches and builds; runs/ and mlflow.db stay"

# The stamp is touched last, so an install that broke off is done again; it is redone when pyproject.toml changes.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python found: install Python 3.11, or give PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is too old: dptrain needs Python 3.11 or newer, give PYTHON=/path/to/python" >&2; exit 1; }
	@# Some distributions ship Python without ensurepip; virtualenv brings its own.
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m pip install virtualenv && $(PYTHON) -m virtualenv --clear $(VENV); }
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --editable ".[test,export,demo,federated]"
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(PY) -m experiments.demo

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

# One thread a process: several torch processes with several threads each spin against one another.
test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

docs: $(STAMP)
	$(PY) -m mkdocs serve

bench: $(STAMP)
	$(PY) -m benchmarks

accuracy: $(STAMP)
	$(PY) -m experiments.benchmark

sabotage: $(STAMP)
	$(PY) -m tests.sabotage

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
