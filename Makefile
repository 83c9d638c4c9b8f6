# Every target sets up what it needs. In an active conda environment named cifar-lab that one is used, else .venv.
PYTHON ?= python3
EXPERIMENTS ?= linear cnn
SEEDS ?= 8
EPOCHS ?=
DATA ?= auto
ACCELERATOR ?= auto
JOBS ?= auto
PORT ?= 5000

ifeq ($(CONDA_DEFAULT_ENV),cifar-lab)
BIN :=
READY :=
else
BIN := .venv/bin/
READY := .venv/ready
endif

.DEFAULT_GOAL := help
.PHONY: help setup experiment ui test lint lock

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12
	@echo 'variables: EXPERIMENTS="linear cnn" SEEDS=8|3,5 EPOCHS= DATA=auto|cifar10|digits ACCELERATOR=auto|cpu|gpu JOBS=auto PORT=5000'

.venv/ready: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cifar-lab needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip install --python .venv/bin/python --requirements requirements.lock
	.venv/bin/uv pip install --python .venv/bin/python --no-deps --editable .
	@touch $@

setup: $(READY)  ## make .venv from requirements.lock; again only when that changes

experiment: $(READY)  ## train EXPERIMENTS with SEEDS, track everything, name the best run
	$(BIN)cifar_lab experiment $(EXPERIMENTS) --seeds $(SEEDS) $(if $(EPOCHS),--epochs $(EPOCHS)) --data $(DATA) --accelerator $(ACCELERATOR) --jobs $(JOBS)

ui: $(READY)  ## open the tracked runs in MLflow's UI on 127.0.0.1:PORT
	$(BIN)cifar_lab ui --port $(PORT)

test: $(READY)  ## run all tests
	$(BIN)python -m pytest

lint: $(READY)  ## check style
	$(BIN)ruff check .
	$(BIN)ruff format --check .

lock: $(READY)  ## resolve pyproject.toml anew into requirements.lock
	$(BIN)uv pip compile --universal --python-version 3.11 --extra dev --no-annotate --no-header --upgrade pyproject.toml --output-file requirements.lock
