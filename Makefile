# The Python that makes the virtual environment: 3.10, 3.11 or 3.12.
PYTHON ?= python3
# Further arguments for pytest or the demo, as in: make test ARGS="-k losses"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check
# Two worker processes with one thread each, because the tests are many and small.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint types keys format annotate studies-given rollback test-server clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv and install everything that DBiSL needs into it

$(STAMP): requirements.lock pyproject.toml
	@version=$$($(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null); \
	case "$$version" in \
	3.10.*|3.11.*|3.12.*) ;; \
	*) echo "DBiSL needs Python 3.10, 3.11 or 3.12, but '$(PYTHON)' is $${version:-not a Python}:" \
	    "name another one, as in 'make setup PYTHON=python3.12'." >&2; exit 1 ;; \
	esac
	@echo "Installing DBiSL into $(VENV) (once; PyTorch takes longest)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --constraint requirements.lock "$$(grep '^torch==' requirements.lock)"
	@$(PIP_INSTALL) --quiet --no-build-isolation --use-pep517 --requirement requirements.lock
	@$(PIP_INSTALL) --quiet --no-build-isolation --no-deps --editable .
	@touch $@

demo: setup ## Run DBiSL end to end on small synthetic scans
	$(BIN)/python scripts/demo.py $(ARGS)

test: setup ## Run the tests, without the slow ones
	$(PYTEST) -m "not slow" $(ARGS)

test-all: setup ## Run all the tests
	$(PYTEST) $(ARGS)

lint: setup ## Check the code's style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/format_json.py --check

types: setup ## Check the types
	$(BIN)/mypy

keys: setup ## Write the table of the configs' keys
	$(BIN)/python scripts/document_keys.py

format: setup ## Put the code in its format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python scripts/format_json.py

# The annotation server needs more packages, and older ones, so it has an environment of its own.
LABEL_APP := bundle/label_app
LABEL_VENV := .venv-annotate
LABEL_BIN := $(LABEL_VENV)/bin
LABEL_STAMP := $(LABEL_VENV)/.installed
LABEL_PIP_INSTALL := $(LABEL_BIN)/python -m pip install --disable-pip-version-check --quiet
PORT ?= 8000

$(LABEL_STAMP): $(LABEL_APP)/requirements.txt $(LABEL_APP)/requirements_server.txt
	@echo "Installing MONAI Label into $(LABEL_VENV) (once; about 2 GB)"
	@$(PYTHON) -m venv $(LABEL_VENV)
	@$(LABEL_PIP_INSTALL) "$$(grep '^torch==' $(LABEL_APP)/requirements.txt)"
	@$(LABEL_PIP_INSTALL) --requirement $(LABEL_APP)/requirements.txt
	@$(LABEL_PIP_INSTALL) --no-deps --requirement $(LABEL_APP)/requirements_server.txt
	@touch $@

annotate: studies-given $(LABEL_STAMP) ## Serve a folder of scans for annotation: make annotate STUDIES=folder [PORT=8000]
	$(LABEL_BIN)/python $(LABEL_APP)/start.py --studies "$(STUDIES)" --port $(PORT) $(ARGS)

studies-given:
	@test -n "$(STUDIES)" || { echo "make annotate needs a folder of scans: make annotate STUDIES=folder" >&2; exit 1; }

rollback: $(LABEL_STAMP) ## Serve the weights again that were served before the last training
	$(LABEL_BIN)/python $(LABEL_APP)/versions.py restore bundle/models $(ARGS)

test-server: $(LABEL_STAMP) ## Run the tests that need the annotation server
	@$(LABEL_PIP_INSTALL) "$$(grep '^pytest==' requirements.lock)"
	PYTHONPATH=$(LABEL_APP)/site OMP_NUM_THREADS=1 $(LABEL_BIN)/python -m pytest tests/label_app -m "not slow" $(ARGS)

clean: ## Remove .venv, caches and build files; data and results stay
	rm -rf $(VENV) $(LABEL_VENV) .mypy_cache .pytest_cache .ruff_cache build dist bundle/*.egg-info
	find bundle scripts tests -type d -name __pycache__ -prune -exec rm -rf {} +
