# python3 (3.11 or newer, with venv) and make are all that a fresh machine needs.
# Another interpreter: make smoke PYTHON=python3.13
PYTHON ?= python3
SEEDS ?= 1
VENV := .venv
BIN := $(VENV)/bin

.PHONY: smoke test test-all lint clean

## Data, SFT, GRPO, evaluation and export of a small model, then one table.
## Interrupted, it continues where it stopped; SEEDS=3 repeats it per seed.
smoke: $(VENV)/run.stamp
	$(BIN)/python launch/smoke.py --seeds=$(SEEDS)

## Every test but the slow ones.
test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 -m "not slow and not accelerator"

## The slow tests too, and a plan of every config; plans need the compilers
## that README.md names, and leave out what is not installed.
test-all: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 -m "not accelerator"
	$(BIN)/python launch/plans.py --out=docs/plans.md

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/run.stamp: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"crjax needs python 3.11 or newer, this is {sys.version.split()[0]}: \
	make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) runs/smoke
