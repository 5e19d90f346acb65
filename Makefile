# agent-runtime: each target sets up all that it needs. PYTHON names the interpreter to build on.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test check bench bench-gate chaos fmt clean
.DEFAULT_GOAL := test

# in another kind of sandbox: make demo SANDBOX=modal-local
demo: $(READY)
	@$(BIN)/python tools/prepare.py demo
	@$(BIN)/agent-runtime demo $(if $(SANDBOX),--sandbox $(SANDBOX))

test: $(READY)
	@$(BIN)/python tools/prepare.py test
	$(BIN)/pytest

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# all of them, or: make bench B=start
bench: $(READY)
	@$(BIN)/python tools/prepare.py bench
	$(BIN)/python bench $(B)

# this tree beside another revision, interleaved; fails on a loss: make bench-gate BASE=v1 G="store start"
bench-gate: $(READY)
	@$(BIN)/python tools/prepare.py bench
	$(BIN)/python bench/gate.py $(G) $(if $(BASE),--base $(BASE))

# make chaos SEEDS=500, or one seed again: make chaos SEED=17
chaos: $(READY)
	$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),20))

fmt: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) tests/clients/node_modules bench/peers/node_modules demo-data .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) tools/prepare.py python
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)
