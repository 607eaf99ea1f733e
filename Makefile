# make demo       data, tokenizers, training, evaluation and report of pipelines/recipes/demo.yaml, fitted to this machine.
#                 Another recipe: make demo RECIPE=path; other values: SET="run.name=mine train.steps=500"; a number of
#                 ranks: RANKS=1; trunk and branches on different ranks: LAYOUT=forked (as many as the recipe's layout needs)
# make verify     the same recipe, compared with the results recorded in docs/verified.md; RECIPE=path for another
# make test       the tests that take seconds each
# make test-gpu   the tests that need an NVIDIA GPU; all others run on the CPU, also on a machine with GPUs
# make gpu        the check of this machine's NVIDIA GPUs, in under 8 minutes: kernels, training, layouts, speed
# make test-slow  all other tests: layouts, kills and resumes, random stream histories, jobs on a real Slurm
# make check      format, lint, types, spelling, import floors: what must hold before a commit
# make docs       links, commands and code blocks of the documentation
#
# Each target first makes .venv from constraints.txt; the stamps are renewed when setup.py or constraints.txt changes. demo
# and verify need fewer packages than the others, and install only those unless all are there.

PYTHON ?= python3.11
VENV := .venv
STAMP := $(VENV)/installed
DEMO_STAMP := $(VENV)/installed-for-demo
BIN := $(VENV)/bin
RECIPE ?= pipelines/recipes/demo.yaml
SET ?=
LAYOUT ?= colocated
RANKS ?=
# A forked demo on two cores is slower: it trains all its steps, without a time limit
ALL_STEPS := $(foreach phase,joint generation understanding,phases.$(phase).train.limit_seconds=null)
LAYOUT_OPTIONS := $(if $(filter colocated,$(LAYOUT)),$(if $(RANKS),--ranks $(RANKS)),layout.kind=$(LAYOUT) $(ALL_STEPS))
# Tests start several processes themselves: one worker per two cores
WORKERS := $(shell expr $$(nproc) / 2)
PYTEST := $(BIN)/python -m pytest $(if $(filter-out 0 1,$(WORKERS)),-n $(WORKERS))

.PHONY: demo verify test test-slow test-gpu gpu check docs
.DEFAULT_GOAL := check

COMMA := ,
# $(call install,EXTRAS): PIP_CONSTRAINT also applies to pip's build environments, which -c does not.
define install
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e .[$(1)]
endef

$(STAMP): setup.py constraints.txt
	$(call install,demo$(COMMA)prep$(COMMA)dev)
	touch $(DEMO_STAMP) $@

$(DEMO_STAMP): setup.py constraints.txt
	$(call install,demo)
	touch $@

demo: $(DEMO_STAMP)
	$(BIN)/ufork demo $(RECIPE) $(SET) $(LAYOUT_OPTIONS)

verify: $(DEMO_STAMP)
	$(BIN)/ufork verify $(RECIPE) $(SET)

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
