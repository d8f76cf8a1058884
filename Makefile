# Everything runs in .venv, which the first target makes. PYTHON chooses the interpreter (3.11+).
PYTHON ?= python3
BIN = .venv/bin

.PHONY: help demo test slow lint format notebooks course versions clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/demo.installed  ## classify twelve handwritten digits with the network in the package
	$(BIN)/tinygmf demo

test: .venv/test.installed  ## check both implementations against the published network
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

slow: .venv/test.installed  ## the tests that take minutes each, hours together
	$(BIN)/python -m pytest -m slow

lint: .venv/test.installed  ## ruff and mypy; `make lint test` is what a change must pass
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/test.installed  ## let ruff format every file and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: .venv/notebooks.installed  ## run every notebook; one failing cell fails the target
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_notebooks.py

course: .venv/notebooks.installed  ## the notebooks as they are committed, as one small site in build/course
	$(BIN)/python notebooks/course/site.py

versions: .venv/bin/python  ## test on every Python found and on the oldest dependencies; VERSIONS=next: on the newest tinygrad
	$(BIN)/python -m pip install --quiet --disable-pip-version-check tox-uv
	$(BIN)/tox run $(if $(VERSIONS),-e $(VERSIONS))

# One stamp for each set of extras: demo, test and notebooks install no more than they need.
.venv/demo.installed: EXTRAS = clang
.venv/test.installed: EXTRAS = clang,plots,test
.venv/notebooks.installed: EXTRAS = clang,plots,test,notebooks
.venv/%.installed: pyproject.toml | .venv/bin/python
	@echo "installing tinygmf and what it needs into .venv: about a minute"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tinygmf needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

clean:  ## remove the virtual environment and what was built
	rm -rf .venv build dist *.egg-info
