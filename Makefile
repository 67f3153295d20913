# Everything a person types here. `make` lists it; each target sets up what it needs first.

PYTHON ?= python3
THREADS ?= $(shell nproc 2>/dev/null || echo 2)
VENV := .venv
BIN := $(VENV)/bin
SERVERS := tests/servers
IMAGE ?= pkm-lakehouse:latest
# What `make bench` measures, with OPTIONS of its own: source, producers, delivery, enrichment, and of the last also
# enrichment_growth, enrichment_memory, enrichment_replay.
WHAT ?= source
# Only where Python comes without ensurepip (Debian's package python3 without python3-venv).
VIRTUALENV := virtualenv==21.15.8

PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# Linear algebra and tokenizers take no more threads than there are cores, nor ask a model hub.
RUN := OMP_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS) OPENBLAS_NUM_THREADS=$(THREADS) \
	TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo servers test thorough chaos faults traced kinesis reshard large bench quality check lock image clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.complete ## make .venv with pkm in it, from requirements.lock

demo: setup ## run the whole pipeline on real documents, on this machine
	@$(RUN) $(BIN)/pkm demo

servers: ## install the Kinesis servers of `make kinesis` (needs node 18 or newer, and npm)
	@command -v npm >/dev/null || { echo "npm is not installed: kinesis-local and kinesalite need nodejs \
	(18 or newer) and npm" >&2; exit 1; }
	@[ $(SERVERS)/node_modules/.complete -nt $(SERVERS)/package-lock.json ] || { \
		echo "installing the Kinesis servers of the tests into $(SERVERS)/node_modules (31 MB)"; \
		cd $(SERVERS) && npm ci --silent && touch node_modules/.complete; }

test: setup ## run the tests (ONLY=path runs a part)
	@$(RUN) $(BIN)/python -m pytest $(or $(ONLY),-n 2 --dist worksteal)

thorough: setup ## the longer tests: kills, faults and replays of whole flows (minutes)
	@$(RUN) $(BIN)/python -m pytest -n 2 --dist worksteal -m thorough

chaos: setup ## kill the flow at every fault point and at random moments (SEED=7 KILLS=200; 40 minutes)
	@PYTHONPATH=.:tests $(RUN) $(BIN)/python -m chaos.run $(if $(SEED),--seed $(SEED)) --kills $(or $(KILLS),200)

faults: setup ## run the flow through every kind of fault of S3, the catalog and the stream, one by one (minutes)
	@$(RUN) $(BIN)/python -m pytest -m faults tests/faults

traced: setup ## watch every file call of flow and producers: nothing is written to a disk (needs strace; minutes)
	@command -v strace >/dev/null || { echo "strace is not installed: apt-get install strace" >&2; exit 1; }
	@PYTHONPATH=.:tests $(RUN) $(BIN)/python tests/diskless/traced.py
	@PYTHONPATH=.:tests $(RUN) $(BIN)/python tests/diskless/traced_git.py
	@PYTHONPATH=.:tests $(RUN) $(BIN)/python tests/diskless/traced_service.py

kinesis: setup servers ## read streams that are resharded, on Kinesis servers that need node
	@$(RUN) $(BIN)/python -m pytest -m servers tests/sources

reshard: setup servers ## 100,000 records over shards that split and merge, read by processes that are killed (minutes)
	@$(RUN) $(BIN)/python -m pytest -m endurance tests/sources

large: setup ## two gigabytes through the HTTP service, and what memory that takes (a minute)
	@$(RUN) $(BIN)/python -m pytest -m large tests/producers/service

bench: setup $(if $(filter source,$(WHAT)),servers) ## measure one part: make bench WHAT=delivery (minutes)
	@PYTHONPATH=.:tests $(RUN) $(BIN)/python -m bench.$(WHAT) $(OPTIONS)

quality: setup ## write docs/quality.md: concepts and entities of ten documents, scores of the entity model (minutes)
	@PYTHONPATH=.:tests $(RUN) $(BIN)/python -m bench.quality > docs/quality.md.new
	@mv docs/quality.md.new docs/quality.md

check: setup ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A wheel for one kind of processor has a local version (+...), which other machines don't have: the lock names none.
lock: setup ## write requirements.lock anew from pyproject.toml (UPGRADE=1 takes newer releases)
	$(BIN)/pip-compile --quiet --all-extras --strip-extras --allow-unsafe --no-header --no-emit-options \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host $(if $(UPGRADE),--upgrade) \
		--output-file=requirements.lock pyproject.toml
	@sed -i -e 's/^\([a-z0-9-]*==[^+ ]*\)+[^ ]*/\1/' \
		-e '1i # All dependencies and extras, exactly. Written by `make lock`; change pyproject.toml instead.\n' \
		requirements.lock

image: ## build the container image (IMAGE=name:tag)
	docker build --tag $(IMAGE) .

clean: ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build

# The stamp is made last, so that a broken set-up is begun again.
$(VENV)/.complete: requirements.lock pyproject.toml | $(BIN)/python
	@echo "installing $$(grep -c '==' requirements.lock) packages into $(VENV) (a minute or two, about 2.5 GB)"
	@$(PIP) install -qq --requirement requirements.lock
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || { \
		echo "$(PYTHON) is not Python 3.11 or 3.12 (bytewax has wheels for no other): make PYTHON=python3.11 ..." >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
		rm -rf $(VENV) && tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && \
		$(PYTHON) -m pip --disable-pip-version-check install -qq --target "$$tools" '$(VIRTUALENV)' && \
		PYTHONPATH="$$tools" $(PYTHON) -m virtualenv --quiet $(VENV); }
