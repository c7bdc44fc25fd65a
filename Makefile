# make demo: set up and run the main job.  make test: set up and run the tests.
# make results-NAME: measure again what results/NAME.json holds (minutes to hours), then fill the tables of README and docs.
# make bench: speed and memory of training beside other libraries, each in an environment of its own (4.5 GB, see benchmarks/training.py).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

RESULTS := demo together students ml100k_sasrec floor scale annotation dllm2rec method_costs llmd4rec alkdrec alkdrec_published compare_ml100k training_speed
DATA ?= ../shared/data

.PHONY: demo test lint format bench clean tables $(RESULTS:%=results-%)

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
	$(BIN)/python benchmarks/training.py --steps 10

results-demo: demo
	cp runs/demo/results.json results/demo.json
	$(MAKE) tables

results-together: $(VENV)/.ready
	$(BIN)/distilrec run configs/demo.yaml --name together method=llmd4rec
	cp runs/together/results.json results/together.json
	$(MAKE) tables

results-students: $(VENV)/.ready
	$(BIN)/python benchmarks/students.py --data $(DATA)
	$(MAKE) tables

results-ml100k_sasrec: $(VENV)/.ready
	$(BIN)/python benchmarks/sasrec_ml100k.py --seeds 42 43 44
	$(MAKE) tables

results-floor: $(VENV)/.ready
	$(BIN)/python benchmarks/floor.py --sequences $(DATA)/amazon-beauty/sequences.txt
	$(MAKE) tables

results-scale: $(VENV)/.ready
	$(BIN)/python benchmarks/scale.py
	$(MAKE) tables

results-annotation: $(VENV)/.ready
	$(BIN)/python benchmarks/annotation.py
	$(BIN)/python benchmarks/annotation.py --server
	$(MAKE) tables

results-dllm2rec: $(VENV)/.ready
	$(BIN)/python benchmarks/methods.py teach --data $(DATA)
	$(BIN)/python benchmarks/methods.py train --data $(DATA)
	$(BIN)/python benchmarks/methods.py report --data $(DATA)
	$(BIN)/python benchmarks/distilling_speed.py --data $(DATA)
	$(MAKE) tables

results-method_costs: $(VENV)/.ready
	$(BIN)/python benchmarks/method_costs.py --data $(DATA)
	$(MAKE) tables

results-llmd4rec: $(VENV)/.ready
	$(BIN)/python benchmarks/llmd4rec.py train --data $(DATA)
	$(BIN)/python benchmarks/llmd4rec.py report --data $(DATA)
	$(MAKE) tables

results-alkdrec: $(VENV)/.ready
	$(BIN)/python benchmarks/alkdrec.py train --data $(DATA)/hetrec-ml
	$(BIN)/python benchmarks/alkdrec.py report --data $(DATA)/hetrec-ml
	$(BIN)/python benchmarks/alkdrec_server.py
	$(MAKE) tables

results-alkdrec_published: $(VENV)/.ready
	$(BIN)/python benchmarks/alkdrec.py train --regime published --data $(DATA)/hetrec-ml
	$(BIN)/python benchmarks/alkdrec.py report --regime published --data $(DATA)/hetrec-ml
	$(MAKE) tables

results-compare_ml100k: $(VENV)/.ready
	$(BIN)/python benchmarks/compare_null.py
	$(BIN)/python benchmarks/compare_ml100k.py
	$(MAKE) tables

results-training_speed: bench
	$(BIN)/python benchmarks/training.py --quality-epochs 1
	$(MAKE) tables

tables: $(VENV)/.ready
	$(BIN)/python benchmarks/tables.py

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
