# python3 and make are all that a fresh machine needs.
PYTHON ?= python3
SEEDS ?= 1
VENV := .venv
BIN := $(VENV)/bin

.PHONY: smoke test test-all lint clean

## Data, SFT, GRPO, evaluation and export of a small model, then one table.
smoke: $(VENV)/run.stamp
	$(BIN)/python launch/smoke.py --seeds=$(SEEDS)

## Every test but the slow ones.
test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 -m "not slow and not accelerator"

test-all: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 -m "not accelerator"

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/run.stamp: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) runs/smoke
