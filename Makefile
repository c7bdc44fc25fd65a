# make demo: set up and run the main job.  make test: set up and run the tests.
# make bench: speed and memory of training beside other libraries, each in an environment of its own (4.5 GB, see benchmarks/training.py).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format bench clean

demo: $(VENV)/.ready
	$(BIN)/distilrec run configs/demo.yaml

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest --cov --cov-report=term

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/training.py --steps 20

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Error: Python 3.11 or newer is needed, $(PYTHON) is older. Name another with: make demo PYTHON=python3.12"; exit 2; }
	@echo "Setting up $(VENV): about a minute, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/pip install --disable-pip-version-check -e . -c constraints.txt
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/pip install --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) .bench runs build dist .mypy_cache .ruff_cache .pytest_cache
