# make demo   train, evaluate and report pipelines/recipes/demo.yaml (another one: make demo RECIPE=path;
#             other values: make demo SET="run.name=mine train.steps=500"; other than 2 ranks: RANKS=1;
#             trunk and branches on ranks of their own: LAYOUT=forked, as many ranks as the recipe's layout needs)
# make test   the tests that take seconds
# make test-slow the slow ones: layouts, stop and resume, a run killed again and again, a hundred histories of a stream, jobs on a real Slurm
# make check  what must hold before a commit: format, lint, types, spelling, import floors
# make docs   check the links and commands that the pages name
#
# Each makes .venv from constraints.txt first, once: the stamp is renewed when setup.py or constraints.txt changes.

PYTHON ?= python3.11
VENV := .venv
STAMP := $(VENV)/installed
BIN := $(VENV)/bin
RECIPE ?= pipelines/recipes/demo.yaml
SET ?=
LAYOUT ?= colocated
RANKS ?= 2
# Four ranks on two cores are slower: a forked demo takes all its steps, in as long as that lasts
ALL_STEPS := $(foreach phase,joint generation understanding,phases.$(phase).train.limit_seconds=null)
LAID_OUT := layout.kind=$(LAYOUT) $(if $(filter colocated,$(LAYOUT)),--ranks $(RANKS),$(ALL_STEPS))

.PHONY: demo test test-slow check docs
.DEFAULT_GOAL := check

# The constraints hold in pip's build environments too, which PIP_CONSTRAINT reaches and -c does not.
$(STAMP): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e .[demo,prep,dev]
	touch $@

demo: $(STAMP)
	$(BIN)/ufork prepare $(RECIPE) $(SET)
	$(BIN)/ufork tokenizer text $(RECIPE) $(SET)
	$(BIN)/ufork tokenizer fit $(RECIPE) $(SET)
	$(BIN)/ufork tokenizer encode $(RECIPE) $(SET)
	$(BIN)/ufork train $(RECIPE) $(SET) $(LAID_OUT)
	$(BIN)/ufork evaluate $(RECIPE) $(SET)
	$(BIN)/ufork report $(RECIPE) $(SET)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python -m pytest -q tests/test_import_floors.py

docs: $(STAMP)
	$(BIN)/python -m pytest -q tests/test_docs.py
