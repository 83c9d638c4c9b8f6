# Every target sets up what it needs. In an active conda environment named cifar-lab that one is used, else .venv.
PYTHON ?= python3
EXPERIMENTS ?= linear cnn
SEEDS ?= 8
TRIALS ?= 20
DATA ?= auto
ACCELERATOR ?= auto
JOBS ?= auto
TOLERANCE ?= 0
METRIC ?= test/acc

ifeq ($(CONDA_DEFAULT_ENV) $(notdir $(wildcard $(CONDA_PREFIX)/bin/python)),cifar-lab python)
BIN := $(CONDA_PREFIX)/bin/
READY :=
else
BIN := .venv/bin/
READY := .venv/ready $(if $(CLUSTER),.venv/ray)
endif

# What a user gives reaches the shell as it is, quoted as a whole or word by word; for make itself, $ is written $$.
quoted = '$(subst ','\'',$1)'
each = $(foreach one,$1,$(call quoted,$(one)))
export PIP_USER := 0

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup experiment pairs sweep reproduce compare report best predict serve data check-gpu ui server relocate test bench lint audit lock
LAB := $(BIN)python -m cifar_lab$(if $(DEBUG), --debug)

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12
	@echo 'variables: EXPERIMENTS="linear cnn" SEEDS=8|3,5 EPOCHS= ACCELERATOR=auto|cpu|gpu JOBS=auto DEVICES=1 CLUSTER=<address> GPUS= PORT=<port> HOST=<address>'
	@echo '           DATA=auto|cifar10|cifar100|digits DATA_DIR=<folder, archive or .npz with images> DATA_NAME=<name for your own>'
	@echo '           RUN=<run id> TOLERANCE=0 METRIC=test/acc FIGURE=<file> IMAGES=<files> MODEL=<run id>|models:/...'
	@echo '           SPACE="section.key=low..high[:log] ..." TRIALS=20 DEBUG=1'

.venv/ready: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cifar-lab needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip install --python .venv/bin/python --compile-bytecode --requirements requirements.lock
	.venv/bin/uv pip install --python .venv/bin/python --no-deps --editable .
	@touch $@

.venv/ray: .venv/ready
	.venv/bin/uv pip install --python .venv/bin/python --compile-bytecode --constraint requirements.lock --editable '.[cluster]'
	@touch $@

setup: $(READY)  ## make .venv from requirements.lock; again only when that changes

IMAGES_OF = --data $(call quoted,$(DATA)) $(if $(DATA_DIR),--data-dir $(call quoted,$(DATA_DIR))) \
    $(if $(DATA_NAME),--data-name $(call quoted,$(DATA_NAME)))

COMMON = $(if $(EPOCHS),--epochs $(call quoted,$(EPOCHS))) $(IMAGES_OF) \
    --accelerator $(call quoted,$(ACCELERATOR)) --jobs $(call quoted,$(JOBS))

PLACE = $(if $(DEVICES),--devices $(call quoted,$(DEVICES))) $(if $(CLUSTER),--cluster $(call quoted,$(CLUSTER))) \
    $(if $(GPUS),--gpus $(call quoted,$(GPUS)))

experiment: $(READY)  ## train EXPERIMENTS with SEEDS, track everything, name the best run
	$(LAB) experiment $(call each,$(EXPERIMENTS)) --seeds $(call quoted,$(SEEDS)) $(COMMON) $(PLACE)

pairs: $(READY)  ## train EXPERIMENTS also with a classifier for each pair of classes, say which is better
	$(LAB) pairs $(call each,$(EXPERIMENTS)) --seeds $(call quoted,$(SEEDS)) $(COMMON) $(PLACE)

sweep: $(READY)  ## search SPACE for better settings of EXPERIMENTS (one) in TRIALS trials
	$(LAB) sweep $(call each,$(EXPERIMENTS)) --trials $(call quoted,$(TRIALS)) \
	    $(foreach range,$(or $(SPACE),$(error give SPACE="optim.learning_rate=0.05..0.5:log ...")),--set $(call quoted,$(range))) $(COMMON)

reproduce: $(READY)  ## train the run RUN again and say whether it comes out identical
	$(LAB) reproduce $(call quoted,$(or $(RUN),$(error give RUN=<run id>; make best and make ui show ids))) \
	    --tolerance $(call quoted,$(TOLERANCE)) --accelerator $(call quoted,$(ACCELERATOR)) \
	    $(if $(DATA_DIR),--data-dir $(call quoted,$(DATA_DIR)))

compare: $(READY)  ## differences between EXPERIMENTS in METRIC with intervals and p-values, drawn in FIGURE
	$(LAB) compare $(call each,$(EXPERIMENTS)) --metric $(call quoted,$(METRIC)) \
	    --figure $(call quoted,$(or $(FIGURE),comparison.png))

report: $(READY)  ## write report.html about EXPERIMENTS: results, curves, errors, calibration, examples
	$(LAB) report $(call each,$(EXPERIMENTS))

best: $(READY)  ## name the best run by validation accuracy, and why
	$(LAB) best

predict: $(READY)  ## classes of the image files IMAGES by the champion, or by MODEL
	$(LAB) predict $(call quoted,$(or $(IMAGES),$(error give IMAGES="files, folders or patterns"))) \
	    $(if $(MODEL),--model $(call quoted,$(MODEL)))

serve: $(READY)  ## answer HTTP requests with the champion, or MODEL, on 127.0.0.1:PORT
	$(LAB) serve $(if $(MODEL),--model $(call quoted,$(MODEL))) --port $(call quoted,$(or $(PORT),5001))

data: $(READY)  ## say what images are there, from where, how many; draw some in FIGURE
	$(LAB) data $(IMAGES_OF) --figure $(call quoted,$(or $(FIGURE),samples.png))

ui: $(READY)  ## open the tracked runs in MLflow's UI on 127.0.0.1:PORT
	$(LAB) ui --port $(call quoted,$(or $(PORT),5000))

server: $(READY)  ## be a tracking server for many people, on PostgreSQL, at HOST:PORT (docs/server.md)
	$(LAB) server --host $(call quoted,$(or $(HOST),127.0.0.1)) --port $(call quoted,$(or $(PORT),5000))

relocate: $(READY)  ## after this folder was moved or copied, let mlflow.db find its artifacts
	$(LAB) relocate

check-gpu: $(READY)  ## say in a table whether the GPU here trains right, and how fast
	$(LAB) check-gpu

test: $(READY)  ## run all tests
	$(BIN)python -m pytest

bench: $(READY)  ## measure speed against plain PyTorch, torchvision and scikit-learn into benchmarks/RESULTS.md
	$(BIN)python -m benchmarks

lint: $(READY)  ## check style
	$(BIN)ruff check .
	$(BIN)ruff format --check .

audit: $(READY)  ## look the locked packages up among known vulnerabilities (needs the network)
	$(BIN)uv tool run pip-audit --strict --no-deps --disable-pip --requirement requirements.lock

lock: $(READY)  ## resolve pyproject.toml anew into requirements.lock
	$(BIN)uv pip compile --universal --python-version 3.11 --extra dev --extra server --no-annotate --no-header --upgrade pyproject.toml --output-file requirements.lock
