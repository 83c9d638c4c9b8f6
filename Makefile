# Every target installs its requirements: into the active conda environment if its name is cifar-lab, else into .venv.
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

# Quote the user's values for the shell, as a whole or word by word. (In a value, $ has to be written as $$ for make.)
quoted = '$(subst ','\'',$1)'
each = $(foreach one,$1,$(call quoted,$(one)))
export PIP_USER := 0

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup experiment pairs curve sweep reproduce compare results report evaluate best predict serve data check-gpu ui server relocate clean test bench lint conda audit lock
LAB := $(BIN)python -m cifar_lab$(if $(DEBUG), --debug)

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12
	@echo 'variables: EXPERIMENTS="linear cnn" SEEDS=8|3,5 EPOCHS= ACCELERATOR=auto|cpu|gpu JOBS=auto DEVICES=1 CLUSTER=<address> GPUS= PORT=<port> HOST=<address>'
	@echo '           DATA=auto|cifar10|cifar100|digits DATA_DIR=<folder, archive or .npz with images> DATA_NAME=<name for your own>'
	@echo '           RUN=<run id> TOLERANCE=0 METRIC=test/acc MARGIN=<points> PLAN=1 FIGURE=<file> IMAGES=<files> MODEL=<run id>|models:/...'
	@echo '           KEY=section.key VALUES="1 10 100" SPACE="section.key=low..high[:log] ..." TRIALS=20 OUTPUT=results YES=1 TRUST=1 DEBUG=1'
	@echo '           OOD=digits|cifar100|<folder> CORRUPTIONS="fog snow" DATA=<folder with CIFAR-10-C or CIFAR-10.1> for evaluate'

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

setup: $(READY)  ## create .venv from requirements.lock; again when that changes

IMAGES_OF = --data $(call quoted,$(DATA)) $(if $(DATA_DIR),--data-dir $(call quoted,$(DATA_DIR))) \
    $(if $(DATA_NAME),--data-name $(call quoted,$(DATA_NAME)))

COMMON = $(if $(EPOCHS),--epochs $(call quoted,$(EPOCHS))) $(IMAGES_OF) \
    --accelerator $(call quoted,$(ACCELERATOR)) --jobs $(call quoted,$(JOBS))

PLACE = $(if $(DEVICES),--devices $(call quoted,$(DEVICES))) $(if $(CLUSTER),--cluster $(call quoted,$(CLUSTER))) \
    $(if $(GPUS),--gpus $(call quoted,$(GPUS)))

experiment: $(READY)  ## train EXPERIMENTS with SEEDS, track everything, name the best run
	$(LAB) experiment $(call each,$(EXPERIMENTS)) --seeds $(call quoted,$(SEEDS)) $(COMMON) $(PLACE)

pairs: $(READY)  ## train EXPERIMENTS also with one classifier per pair of classes, and compare
	$(LAB) pairs $(call each,$(EXPERIMENTS)) --seeds $(call quoted,$(SEEDS)) $(COMMON) $(PLACE)

curve: $(READY)  ## train EXPERIMENTS with each of VALUES of the setting KEY, draw the accuracy in FIGURE
	$(LAB) curve $(call each,$(EXPERIMENTS)) --key $(call quoted,$(or $(KEY),$(error give KEY=data.train_size VALUES="1000 5000 45000"))) \
	    --values $(call each,$(or $(VALUES),$(error give VALUES="1000 5000 45000"))) --figure $(call quoted,$(or $(FIGURE),curve.png)) \
	    --seeds $(call quoted,$(SEEDS)) $(COMMON) $(PLACE)

sweep: $(READY)  ## search SPACE for better settings of one experiment, in EXPERIMENTS: TRIALS trials of SEEDS runs (default 1)
	$(LAB) sweep $(call each,$(EXPERIMENTS)) --trials $(call quoted,$(TRIALS)) \
	    --seeds $(call quoted,$(if $(filter file,$(origin SEEDS)),1,$(SEEDS))) \
	    $(foreach range,$(or $(SPACE),$(error give SPACE="optim.learning_rate=0.05..0.5:log ...")),--set $(call quoted,$(range))) $(COMMON)

reproduce: $(READY)  ## train run RUN again and say whether it comes out identical
	$(LAB) reproduce $(call quoted,$(or $(RUN),$(error give RUN=<run id>; make best and make ui show ids))) \
	    --tolerance $(call quoted,$(TOLERANCE)) --accelerator $(call quoted,$(ACCELERATOR)) \
	    $(if $(DATA_DIR),--data-dir $(call quoted,$(DATA_DIR))) $(if $(TRUST),--trust)

compare: $(READY)  ## differences between EXPERIMENTS in METRIC with intervals and p-values, drawn in FIGURE
	$(LAB) compare $(call each,$(EXPERIMENTS)) --metric $(call quoted,$(METRIC)) \
	    $(if $(MARGIN),--margin $(call quoted,$(MARGIN))) $(if $(PLAN),--plan) \
	    --figure $(call quoted,$(or $(FIGURE),comparison.png))

results: $(READY)  ## write the results of all experiments, or of EXPERIMENTS, to OUTPUT.csv, .md and .tex
	$(LAB) results $(if $(filter-out file,$(origin EXPERIMENTS)),$(call each,$(EXPERIMENTS))) \
	    --output $(call quoted,$(or $(OUTPUT),results))

report: $(READY)  ## write report.html about EXPERIMENTS: results, curves, errors, calibration, examples
	$(LAB) report $(call each,$(EXPERIMENTS)) $(if $(TRUST),--trust)

evaluate: $(READY)  ## test RUN, a run or an experiment, on corrupted images or those in DATA, and against OOD
	$(LAB) evaluate $(call quoted,$(or $(RUN),$(error give RUN=<run id or experiment>))) \
	    $(if $(filter-out auto,$(DATA)),--data $(call quoted,$(DATA))) \
	    $(if $(CORRUPTIONS),--corruptions $(call each,$(CORRUPTIONS))) \
	    $(if $(OOD),--against $(call quoted,$(OOD))) $(if $(TRUST),--trust)

best: $(READY)  ## name the best run by validation accuracy, and the reason
	$(LAB) best

predict: $(READY)  ## classify the image files IMAGES with the champion, or with MODEL
	$(LAB) predict $(call quoted,$(or $(IMAGES),$(error give IMAGES="files, folders or patterns"))) \
	    $(if $(MODEL),--model $(call quoted,$(MODEL))) $(if $(TRUST),--trust)

serve: $(READY)  ## answer HTTP requests on 127.0.0.1:PORT with the champion, or with MODEL=models:/...
	$(LAB) serve $(if $(MODEL),--model $(call quoted,$(MODEL))) --port $(call quoted,$(or $(PORT),5001))

data: $(READY)  ## show which images are found, where, and how many; draw some in FIGURE
	$(LAB) data $(IMAGES_OF) --figure $(call quoted,$(or $(FIGURE),samples.png))

ui: $(READY)  ## open the tracked runs in MLflow's UI on 127.0.0.1:PORT
	$(LAB) ui --port $(call quoted,$(or $(PORT),5000))

server: $(READY)  ## start a tracking server for a team, on PostgreSQL, at HOST:PORT (docs/server.md)
	$(LAB) server --host $(call quoted,$(or $(HOST),127.0.0.1)) --port $(call quoted,$(or $(PORT),5000))

relocate: $(READY)  ## after this folder was moved or copied, let mlflow.db find its artifacts
	$(LAB) relocate

clean: $(READY)  ## free the disk of runs that were deleted in the UI: lists them, then asks, or YES=1
	$(LAB) clean$(if $(YES), --yes)

check-gpu: $(READY)  ## check whether the GPU here trains correctly, and measure how fast
	$(LAB) check-gpu

test: $(READY)  ## run all tests
	OMP_WAIT_POLICY=passive $(BIN)python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --durations=25

bench: $(READY)  ## measure speed (with ACCELERATOR=gpu, on the GPU) against plain PyTorch and others: benchmarks/RESULTS.md
	$(BIN)python -m benchmarks $(filter gpu,$(ACCELERATOR))

lint: $(READY)  ## check style and types
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy cifar_lab

conda: $(READY)  ## test conda's pip step in a new environment, which is then removed
	.ci/conda

audit: $(READY)  ## check the locked packages for known vulnerabilities (needs the network)
	$(BIN)uv tool run pip-audit --strict --no-deps --disable-pip --requirement requirements.lock

lock: $(READY)  ## resolve pyproject.toml again into requirements.lock
	$(BIN)uv pip compile --universal --python-version 3.11 --extra dev --extra server --no-annotate --no-header --upgrade pyproject.toml --output-file requirements.lock
