# Every target sets up its own virtual environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint format bench docs clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(INSTALLED)

demo: $(INSTALLED)  ## simulate a screen, fit, predict, evaluate; leaves demo/report.html
	$(BIN)/sccvae demo --out demo

test: $(INSTALLED)  ## the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(INSTALLED)  ## style, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## slow checks, and the results of the README (the real screen where SCCVAE_DATA names its folder)
	$(BIN)/python -m pytest -m slow
	$(BIN)/python benchmarks/simulation.py
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/sbc.py
	$(BIN)/python benchmarks/next_experiment.py
	$(BIN)/python benchmarks/modules.py
	$(BIN)/python benchmarks/responders.py
	PYTHONPATH=tests $(BIN)/python benchmarks/svi_against_nuts.py
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/graphs.py
	[ -z "$$SCCVAE_DATA" ] || $(BIN)/python benchmarks/papalexi.py
	[ -z "$$SCCVAE_DATA" ] || $(BIN)/python benchmarks/papalexi_each.py
	[ -z "$$SCCVAE_DATA" ] || $(BIN)/python benchmarks/papalexi_guides.py
	[ -z "$$SCCVAE_DATA" ] || $(BIN)/python benchmarks/papalexi_responders.py
	[ -z "$$SCCVAE_DATA" ] || $(BIN)/python benchmarks/tables.py

docs: $(INSTALLED)  ## execute the notebooks, in place
	$(BIN)/jupytext --to ipynb --execute notebooks/*.py

clean:
	rm -rf $(VENV) demo run
