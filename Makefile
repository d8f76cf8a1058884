# Everything runs in .venv, which the first target makes. PYTHON chooses the interpreter (3.11+).
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint notebooks versions clean

demo: .venv/demo.installed  ## classify twelve handwritten digits with the network that comes along
	$(BIN)/tinygmf demo

test: .venv/test.installed  ## prove that both implementations are the published network
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: .venv/test.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: .venv/notebooks.installed  ## run every notebook; a cell that fails, fails the target
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_notebooks.py

versions: .venv/bin/python  ## the tests on every Python here and with the oldest dependencies; VERSIONS=next: tinygrad's newest
	$(BIN)/python -m pip install --quiet --disable-pip-version-check tox-uv
	$(BIN)/tox run $(if $(VERSIONS),-e $(VERSIONS))

# One stamp for each set of extras: demo, test and notebooks install no more than they need.
.venv/demo.installed: EXTRAS = clang
.venv/test.installed: EXTRAS = clang,plots,test
.venv/notebooks.installed: EXTRAS = clang,plots,test,notebooks
.venv/%.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tinygmf needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv build dist *.egg-info
