# `make demo` and `make test` set everything up by themselves: a .venv with pinned versions, made once.
# Needs Python 3.11+ (launcher/setup.sh says so in one line when something is missing).
.DEFAULT_GOAL := help
.PHONY: help demo test fast-test chaos gpu-kit slurm slurm-lab lint wheel clean

READY := .venv/.ready

# Programs that tests start by name are the environment's.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export TOKENIZERS_PARALLELISM := false

# Whole files to each: what a file's tests share is made once. A worker that dies ends the run: with a new one in its place
# it would wait for ever for the rest of the file.
WORKERS := --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt launcher/setup.sh
	@launcher/setup.sh

demo: $(READY)  ## the whole story, small, on real text (DEMO_ARGS=--full for the longer version)
	.venv/bin/sparse-pretrain demo $(DEMO_ARGS)

# Tests never ask a model hub: what they need comes from the package index or is made on the spot.
test: lint slurm  ## lint, types, every test (PYTEST_ARGS="tests/pruning -x" to choose)
	HF_HUB_OFFLINE=1 .venv/bin/python -m pytest $(WORKERS) $(PYTEST_ARGS)

fast-test: $(READY)  ## only the tests that take less than ten seconds each
	HF_HUB_OFFLINE=1 .venv/bin/python -m pytest $(WORKERS) -m "not slow" $(PYTEST_ARGS)

chaos: $(READY)  ## 100 kills, damaged files and full disks; half an hour (CHAOS_ARGS="--faults 20 --seed 1")
	HF_HUB_OFFLINE=1 .venv/bin/python -m tests.chaos $(CHAOS_ARGS)

# Without the right to install it, it says so in one line, and the tests on a cluster say that they are skipped.
slurm:
	@launcher/lab/install.sh || true

gpu-kit: $(READY)  ## what tests/gpu/measure.sh needs on a GPU machine without network, in ./gpu-kit/
	@tests/gpu/kit.sh gpu-kit

slurm-lab: $(READY)  ## a SLURM cluster of two nodes on this machine, in ./slurm-lab/ (LAB_ARGS="--nodes 3 --gpus 2")
	@launcher/lab/install.sh
	@.venv/bin/python -m launcher.lab up slurm-lab $(LAB_ARGS)

lint: $(READY)  ## ruff (rules and format) and mypy --strict
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

wheel: $(READY)  ## dist/*.whl
	.venv/bin/python -m build --wheel --no-isolation --outdir dist .

clean:  ## remove .venv, build results and caches (runs/ and data/ stay)
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
