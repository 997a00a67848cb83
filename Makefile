# Everything from a fresh machine with python3 (3.11 or newer) and make:
#
#   make run                         set up, then prove the claims of gp-hm; a second call
#                                    takes what is proved already
#   make run SYSTEM=gp-hm ARGS=--smoke
#   make test                        the tests; test-all adds the slow ones
#   make leaderboard                 fine-tuning methods compared on one task, with a report
#   make lint bench ray clean help

PYTHON ?= python3
VENV   ?= .venv
SYSTEM ?= gp-hm
ARGS   ?=

BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP       := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: run test test-all leaderboard bench lint ray setup clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

run: $(INSTALLED)
	@$(BIN)/passband reproduce $(SYSTEM) --reuse $(ARGS)

# A module's tests stay together, for what they share is made once.
SHARE := -n logical --maxprocesses 4 --dist loadfile

test: $(INSTALLED)
	@$(BIN)/python -m pytest $(SHARE) -m "not slow" $(ARGS)

test-all: $(INSTALLED)
	@$(BIN)/python -m pytest $(SHARE) $(ARGS)

# Learning rates: the best of three for each method on seed 1000, by bits/byte on held-out code.
TUNING := hft=3e-3 sara=1e-2 ba-lora=3e-3 sorsa=3e-3 corda=1e-2 s2ft=3e-2 lt-sft=1e-2 spiel=3e-2 \
	intruder-dims=1e-2 full-tuning=1e-3 lora=1e-2 pissa=3e-3 bitfit=3e-2
METHODS := $(foreach t,$(TUNING),$(firstword $(subst =, ,$(t))))

leaderboard: $(INSTALLED)
	@$(BIN)/passband compare $(METHODS) --task lm-code --seeds 3 --budget "150 steps" --html \
	    --reference full-tuning --set batch_size=16 $(patsubst %,--set %,$(subst =,.lr=,$(TUNING))) $(ARGS)

bench: $(INSTALLED)
	@set -e; for file in benchmarks/[!_]*.py; do \
	    [ -e "$$file" ] || continue; \
	    echo "== $$file"; $(BIN)/python "$$file" $(ARGS); \
	done

lint: $(INSTALLED)
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy

ray: $(INSTALLED)
	@echo "passband: installing the extra 'ray'"
	@$(PIP) -e '.[dev,tuning,speech,retrieval,dynamics,ray]'

setup: $(INSTALLED)

# The stamp makes a second call start at once. Torch is the large one and goes first, alone: the
# constraints pin its version, a range would pull gigabytes of builds.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "passband needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1)." >&2; \
	    echo "  to mend:  make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { \
	    echo "python3 has no venv; on Debian or Ubuntu: apt install python3-venv" >&2; \
	    rm -rf $(VENV); exit 1; }
	@echo "passband: setting up $(VENV), once; this takes a few minutes"
	@echo "  1 of 2  torch"
	@$(PIP) torch
	@echo "  2 of 2  passband and what it needs"
	@$(PIP) -e '.[dev,tuning,speech,retrieval,dynamics]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache build dist
