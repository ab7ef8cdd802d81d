# Needs python3 (3.11 or newer, with its venv module) and make; everything else goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
# Options handed to pytest: `make test PYTEST="-k sampling -x"`; WORKERS test processes side by side, 0 for none.
PYTEST ?=
WORKERS ?= 2
DEMO_OUT ?= demo-output

BIN := $(VENV)/bin
AREAS := pipeline backbones fusion extract train

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help test test-gpu test-cluster demo demo-features demo-training locks lint format dev links clean check-python

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo
	@echo "  PYTHON=$(PYTHON) makes the environment in VENV=$(VENV); a second call installs nothing again."

test: $(VENV)/.installed-dev  ## run the tests: on the CPU, and where there is a GPU those of GPUs after them
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST)
	@if command -v nvidia-smi > /dev/null && nvidia-smi -L > /dev/null 2>&1; then $(MAKE) test-gpu; fi

test-gpu: $(VENV)/.installed-dev  ## the tests that need a GPU, or several, alone
	$(BIN)/python -m pytest -m gpu $(PYTEST) || [ $$? -eq 5 ]  # 5: PYTEST chose none of them

# Root on Debian 12, where what is missing is installed by apt. CHECKERS: linters, whose pins fit no other environment.
CHECKERS := $(VENV)-checkers
test-cluster: $(VENV)/.installed-dev,cluster  ## containers, Slurm, Kubernetes manifests, Ray: real daemons, Debian, root
	tests/cluster/prepare.sh $(CHECKERS) $(PYTHON)
	ACTIONFUSE_CLUSTER=1 ACTIONFUSE_CHECKERS=$(abspath $(CHECKERS))/bin PATH="$(abspath $(BIN)):$$PATH" \
	  $(BIN)/python -m pytest tests/cluster -p no:xdist -p no:cacheprovider --durations=0 --durations-min=1 $(PYTEST)

demo: demo-features demo-training  ## both of these

demo-features: $(VENV)/.installed-demo  ## rgb, flow and sound features of a few real videos, as one html page
	$(BIN)/actionfuse demo --out $(DEMO_OUT)

demo-training: $(VENV)/.installed-demo  ## synthesise a kitchen, extract, train fusion heads, compare them: a table, pages
	$(BIN)/actionfuse demo-training --out $(DEMO_OUT)/training

locks: check-python  ## the images' requirements again, by version and hash: Linux, x86-64, Python 3.11
	$(PYTHON) docker/lock.py

lint: $(VENV)/.installed-dev links  ## ruff check, ruff format --check, pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-dev  ## sort imports, fix what can be fixed, format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

dev: $(VENV)/.installed-dev links  ## the environment and the links for editors, without running anything

clean:  ## remove the environment and everything that was made
	rm -rf $(VENV) $(CHECKERS) .ide build dist *.egg-info .pytest_cache .ruff_cache $(DEMO_OUT)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The package is spread over the root folders (setup.cfg: package_dir), which type checkers and editors cannot see
# through. They read this folder of links instead; nothing imports it at run time.
links:
	@mkdir -p .ide/actionfuse
	@for area in $(AREAS); do if [ -d $$area ]; then ln -sfn ../../$$area .ide/actionfuse/$$area; fi; done
	@for file in src/actionfuse/*; do case $$file in *.py|*/py.typed) ln -sfn ../../$$file .ide/actionfuse/;; esac; done

# One stamp per set of extras: installed again only where what is needed has changed. One pip call for everything, so
# that torch and torchvision come from the same place and fit each other.
$(VENV)/.installed-%: setup.cfg pyproject.toml $(VENV)/.made | check-python
	$(BIN)/python -m pip install --editable '.[$*]'
	@touch $@

$(VENV)/.made: | check-python
	$(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) cannot make an environment; on Debian and Ubuntu install the package python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --upgrade pip
	@touch $@

check-python:
	@if [ -e $(VENV)/.made ] && [ $(origin PYTHON) = file ]; then exit 0; fi; \
	command -v $(PYTHON) >/dev/null || { echo "there is no $(PYTHON); name one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }; \
	version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])') || exit 1; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is Python $$version; actionfuse needs 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }; \
	if [ -e $(VENV)/.made ]; then \
	  made=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  [ $$made = $$version ] || { \
	    echo "$(VENV) holds Python $$made, not $$version: 'make clean' first, or choose another folder: VENV=.venv-$$version" >&2; \
	    exit 1; }; \
	fi
