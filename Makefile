# Two commands for a new user: `make demo` and `make test`. All of them are safe to repeat.
.DEFAULT_GOAL := help
.PHONY: help setup up down status demo test test-long test-terraform test-compose lint lock clean

# The first Python 3.11 found; else any, whose version `make setup` then names in its message.
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo "$$p" && exit; done; echo python3)
RUN := .venv/bin/python
# A worker that dies ends the run: pytest-xdist would start another one, and then wait for the dead one's tests for ever.
SIDE_BY_SIDE = -n $(TEST_WORKERS) --dist loadfile --max-worker-restart=0
# Files of tests that run side by side; each worker starts a stack of its own.
TEST_WORKERS ?= 2

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv from the lock files
	@$(PYTHON) local/setup.py

up: setup ## start the embedded stack on 127.0.0.1 and wait until it is healthy
	@$(RUN) -m local up

down: ## stop the embedded stack; its data stays
	@if [ -x $(RUN) ]; then $(RUN) -m local down; else echo "Nothing was running."; fi

status: setup ## show the parts of the embedded stack; exit code 0 when all are healthy
	@$(RUN) -m local status

demo: setup ## run the whole loop, from documents to drift, and show a summary
	@$(RUN) -m local.demo

test: setup ## run the tests, two files at a time; they start what they need themselves
	@$(RUN) -m pytest $(SIDE_BY_SIDE) --no-loadscope-reorder --durations=12 -m "not terraform and not compose and not long"

test-long: setup ## run the longest tests: every recipe trained, restores and syncs killed, hostile documents, whole models
	@$(RUN) -m pytest $(SIDE_BY_SIDE) --no-loadscope-reorder --durations=5 -m long

test-terraform: setup ## plan infra/terraform, and apply it to an emulator of AWS (needs terraform and its AWS provider)
	@$(RUN) -m pytest $(SIDE_BY_SIDE) -m terraform

test-compose: setup ## build docker-compose.yml, run the loop through it (needs a Docker engine)
	@$(RUN) -m pytest -m compose --durations=5

lint: setup ## check style and types
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

lock: setup ## resolve requirements/*.in anew into the lock files
	@$(RUN) -m local.lock

clean: down ## stop the stack and delete its data; .venv stays
	@$(RUN) -m local clean
