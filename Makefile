# Everything runs in .venv, made once with the Python below (3.11 to 3.13) and brought up to date when
# pyproject.toml or constraints.txt change. `make demo` needs nothing else on the machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= 2
OUT ?= build/gpu
export OMP_NUM_THREADS ?= 1

.PHONY: demo test gpu lint docs docs-html docs-examples docs-notebooks format wheel clean help

help:  ## these lines
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else \
	  f"pararealize needs Python 3.11, 3.12 or 3.13; $(PYTHON) is {v[0]}.{v[1]}. Say make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing pararealize and scikit-learn into $(VENV) (PyTorch is large: this may take some minutes, once)"
	$(PIP_INSTALL) --editable '.[data]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing pararealize and what its tests, linters and documentation need into $(VENV), once"
	$(PIP_INSTALL) --editable '.[data,zoo,test,lint,docs]'
	@touch $@ $(VENV)/.demo

# waiting threads spin for a moment and then sleep: sleeping at once doubles the time, spinning on hurts busy machines
demo: $(VENV)/.demo  ## convert ResNet-1001 with n = 12 and train it for some steps on the digits
	@OMP_NUM_THREADS=$(WORKERS) GOMP_SPINCOUNT=20000 $(BIN)/pararealize demo

test: $(VENV)/.test  ## the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

# with the Python that is there and what is installed beside it: no environment is made, and nothing is downloaded;
# `make gpu DOUBLE=1` runs the same recipe where there is no GPU, on a double of CUDA: slower, and no time means anything
gpu:  ## on a machine with a CUDA GPU: the tests that need one, and the shortest benchmark, in at most 8 minutes
	mkdir -p $(OUT)
	-timeout $(if $(DOUBLE),3600,110) $(PYTHON) -m pytest -q -p no:cacheprovider -n $(if $(DOUBLE),$(WORKERS),4) \
	  --timeout $(if $(DOUBLE),300,60) -W "ignore:Please use the new API settings" tests/network/local \
	  tests/train/test_captured_step.py tests/test_compiler.py -k "$(if $(DOUBLE),double,gpu or GPU)" 2>&1 | \
	  tee $(OUT)/tests.txt
	timeout $(if $(DOUBLE),3600,360) $(PYTHON) -m benchmarks.graphs --shortest --out $(OUT) \
	  $(if $(DOUBLE),--double --steps 1)

lint: $(VENV)/.test  ## ruff, mypy and the import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy pararealize cli
	$(BIN)/lint-imports

format: $(VENV)/.test  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: docs-html docs-examples docs-notebooks  ## the documentation, as HTML, its examples run as tests, and its notebooks

docs-html: $(VENV)/.test
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

docs-examples: $(VENV)/.test
	$(BIN)/sphinx-build -W --keep-going -q -b doctest docs docs/_build/doctest

docs-notebooks: $(VENV)/.test
	$(BIN)/python docs/_ext/notebooks.py

wheel: $(VENV)/.test  ## the wheel, into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## remove what make made, the environment included
	rm -rf $(VENV) build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
