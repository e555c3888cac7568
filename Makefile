# make train    train the default recipe; ARGS="--trainer.max_epochs=3" overrides
# make test     run the tests;            ARGS="-k resume" picks some
# make lint     ruff, mypy and import-linter, as CI runs them
# make setup | lock | rename | upgrade    see src/anneal/engine.mk
# make bench | docs | figures | slim     see below
#
# Each installs first what it needs and has not got.

ARGS ?=
.DEFAULT_GOAL := setup
include src/anneal/engine.mk

.PHONY: train test lint
train: .venv/installed
	$(BIN)/python train.py $(ARGS)

test: .venv/installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo $(CONTRACTS) pyproject.toml

# ---- The template's own, from here to the end: `make slim` removes it.

.PHONY: bench docs figures slim
# Draw the figures of docs/optimizers.md and docs/sharpness.md anew, by the commands there.
figures: .venv/installed
	$(BIN)/python train.py figures

# Run the benchmarks, write benchmarks/README.md; ARGS="--mnist=data raw_loop" as is said there.
bench: .venv/installed-dev
	$(BIN)/python benchmarks $(ARGS)

# The site of docs/ in site/; whatever is wrong with a page is an error.
docs: .venv/installed
	$(BIN)/python -c "import zensical, mkdocstrings" 2> /dev/null || $(BIN)/pip install --quiet -e ".[docs]"
	$(BIN)/python scripts/site.py

# Remove the examples, the benchmarks, the engine's tests and the pages about the template.
slim: .venv/installed
	@$(BIN)/python scripts/slim.py
