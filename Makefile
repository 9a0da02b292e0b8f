# Every target works on a fresh clone with Python 3.11 or later and make; nothing has to be done first.
# Another Python: make test PYTHON=python3.12.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
RECIPE ?= configs/quickstart.py
QUICKSTART ?= runs/quickstart
PROMPT ?= how do i train my parrot to sit in a week?
PIP_QUIET ?= --quiet

export JAX_PLATFORMS ?= cpu
# XLA's CPU backend allocates its temporaries afresh at every step; in huge pages that costs half the time (glibc 2.35)
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

BIN := $(VENV)/bin
BASE := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
INSTALL = $(BIN)/python -m pip install $(PIP_QUIET) --disable-pip-version-check --constraint constraints.txt
PYTHON_OK = import ensurepip, sys; sys.exit(sys.version_info < (3, 11))
FAST := not slow and not gpu and not tpu

.PHONY: help quickstart test lint types format tables environment clean clean-quickstart

help: ## Lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-18s %s\n", $$1, $$2}'

quickstart: $(BASE) ## Trains, samples and evaluates a small DIMBA on this CPU (5-10 minutes)
	@echo "==> 1/3 training $(RECIPE) into $(QUICKSTART): three to seven minutes on 2 cores."
	@echo "    Interrupted, it goes on where it stopped; finished, it is not repeated (make clean-quickstart starts afresh)."
	@$(BIN)/python -m dimba_jax.train --config=$(RECIPE) --workdir=$(QUICKSTART) || \
	  { echo "    (the run of an older recipe? make clean-quickstart)" >&2; exit 1; }
	@echo "==> 2/3 evaluating the test split, none of whose pairs was seen in training: about a minute."
	@$(BIN)/python -m dimba_jax.evaluate --checkpoint=$(QUICKSTART) --split=test --output=$(QUICKSTART)/eval.json
	@echo "==> 3/3 drawing one sentence from noise to text: seconds."
	@$(BIN)/python -m dimba_jax.strip --checkpoint=$(QUICKSTART) --output=$(QUICKSTART)/denoising_strip.png
	@echo "==> done. In $(QUICKSTART): eval.json, loss.png, denoising_strip.png and .txt, TensorBoard logs, the checkpoint."
	@echo "    Ask it something:  $(BIN)/python -m dimba_jax.sample --checkpoint=$(QUICKSTART) --prompt=\"$(PROMPT)\""

test: $(DEV) ## Runs the fast tests on the CPU (20 to 50 minutes on 2 cores)
	@echo "==> tests, $(JOBS) at a time: twenty to fifty minutes on 2 cores"
	@$(BIN)/python -m pytest -q -n $(JOBS) -m "$(FAST)" --durations=10 -rs $(ARGS)

lint: $(DEV) ## Checks style and formatting (seconds)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(DEV) ## Checks types with pyright (about a minute)
	@$(BIN)/pyright --pythonpath $(BIN)/python

format: $(DEV) ## Formats the code and mends what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

tables: $(DEV) ## Writes the tables of experiments/ and README.md from the results there, draws their plots
	@for study in qqp qqp_gaussian qqp_masked tasks masked_lm throughput diffumamba_parameters; do \
	  $(BIN)/python experiments/$$study/report.py || exit 1; done
	@for base in generated qqp; do $(BIN)/python experiments/ablations/report.py --base=$$base || exit 1; done
	@$(BIN)/python experiments/scale/table.py

environment: $(DEV) ## Creates the environment with everything for development

clean-quickstart: ## Removes the quickstart's run, so that the next one starts afresh
	rm -rf $(QUICKSTART)

clean: ## Removes the environment and all caches; runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c '$(PYTHON_OK)' || { echo "make: '$(PYTHON)' must be Python 3.11 or later with the venv module" \
	  "(Debian: apt install python3-venv). Choose one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "==> creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(BASE): pyproject.toml constraints.txt | $(BIN)/python
	@echo "==> installing dimba_jax into $(VENV): one or two minutes, about 1 GB, once"
	@$(INSTALL) --editable .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "==> installing dimba_jax and its development tools into $(VENV): two or three minutes, once"
	@$(INSTALL) --editable ".[dev,hub]"
	@# jax-triton writes its calls with the CUDA plugin. Not with its dependencies: without a driver the runtime among
	@# them ends Python with a segmentation fault (jax 0.10.2) or prints a page of errors (0.11.2).
	@if [ "$$(uname -s)" = Linux ]; then $(INSTALL) --no-deps jax-triton jax-cuda13-plugin; fi
	@touch $@ $(BASE)
