# make train   set up (once) and train the default recipe; ARGS="--trainer.max_epochs=3" overrides
# make test    set up (once) and run the tests;            ARGS="-k resume" picks some
# make figures draw the pictures of docs/optimizers.md
# make lint    ruff and mypy, as CI runs them

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.PHONY: setup train test figures lint
setup: .venv/installed

# Installed again only when pyproject.toml changes.
.venv/installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Anneal needs Python 3.11 or newer')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e ".[dev]"
	@touch $@

train: .venv/installed
	$(BIN)/python train.py $(ARGS)

test: .venv/installed
	$(BIN)/python -m pytest -n auto $(ARGS)

figures: .venv/installed
	$(BIN)/python -m anneal.figures

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
