# make demo       data, tokenizers, training, evaluation and report of pipelines/recipes/demo.yaml. Another recipe:
#                 make demo RECIPE=path; other values: SET="run.name=mine train.steps=500"; other than 2 ranks: RANKS=1;
#                 trunk and branches on different ranks: LAYOUT=forked (as many ranks as the recipe's layout needs)
# make test       the tests that take seconds each
# make test-gpu   the tests that need an NVIDIA GPU; all others run on the CPU, also on a machine with GPUs
# make gpu        the check of this machine's NVIDIA GPUs, in under 8 minutes: kernels, training, layouts, speed
# make test-slow  all other tests: layouts, kills and resumes, random stream histories, jobs on a real Slurm
# make check      format, lint, types, spelling, import floors: what must hold before a commit
# make docs       links, commands and code blocks of the documentation
#
# Each target first makes .venv from constraints.txt; the stamp is renewed when setup.py or constraints.txt changes.

PYTHON ?= python3.11
VENV := .venv
STAMP := $(VENV)/installed
BIN := $(VENV)/bin
RECIPE ?= pipelines/recipes/demo.yaml
SET ?=
LAYOUT ?= colocated
RANKS ?= 2
# A forked demo on two cores is slower: it trains all its steps, without a time limit
ALL_STEPS := $(foreach phase,joint generation understanding,phases.$(phase).train.limit_seconds=null)
LAYOUT_OPTIONS := layout.kind=$(LAYOUT) $(if $(filter colocated,$(LAYOUT)),--ranks $(RANKS),$(ALL_STEPS))
# Tests start several processes themselves: one worker per two cores
WORKERS := $(shell expr $$(nproc) / 2)
PYTEST := $(BIN)/python -m pytest $(if $(filter-out 0 1,$(WORKERS)),-n $(WORKERS))

.PHONY: demo test test-slow test-gpu gpu check docs
.DEFAULT_GOAL := check

# PIP_CONSTRAINT also applies to pip's build environments, which -c does not.
$(STAMP): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e .[demo,prep,dev]
	touch $@

demo: $(STAMP)
	$(BIN)/ufork prepare $(RECIPE) $(SET)
	$(BIN)/ufork tokenizer text $(RECIPE) $(SET)
	$(BIN)/ufork tokenizer fit $(RECIPE) $(SET)
	$(BIN)/ufork tokenizer encode $(RECIPE) $(SET)
	$(BIN)/ufork train $(RECIPE) $(SET) $(LAYOUT_OPTIONS)
	$(BIN)/ufork evaluate $(RECIPE) $(SET)
	$(BIN)/ufork report $(RECIPE) $(SET)

test: $(STAMP)
	$(PYTEST) -m "not slow and not gpu"

test-slow: $(STAMP)
	$(PYTEST) -m "slow and not gpu"

# One process, since the tests share the GPU
test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

gpu: $(STAMP)
	$(BIN)/python -m benchmarks.gpu_check

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python -m pytest -q tests/test_import_floors.py

docs: $(STAMP)
	$(BIN)/python -m pytest -q tests/test_docs.py
