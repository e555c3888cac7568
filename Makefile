# make train   set up (once) and train the default recipe; ARGS="--trainer.max_epochs=3" overrides
# make test    set up (once) and run the tests;            ARGS="-k resume" picks some
# make figures draw the pictures of docs/optimizers.md
# make bench   run the benchmarks and write benchmarks/README.md; ARGS="--mnist=data raw_loop" as there
# make lint    ruff and mypy, as CI runs them
# make docs    the site of docs/ in site/; what is wrong with a page is an error
# make lock    write requirements.lock: the versions that are installed, with their hashes
# make rename NAME=...  give the project a name of yours
# make slim    leave what a project on images needs
# LOCKED=1     set up with exactly what is in requirements.lock

PYTHON ?= python3
ARGS ?=
LOCKED ?=
BIN := .venv/bin

.PHONY: setup train test figures bench lint docs lock rename slim
setup: .venv/installed

# Installed again only when pyproject.toml changes.
.venv/installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Anneal needs Python 3.11 or newer')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(if $(LOCKED),$(BIN)/pip install --quiet --require-hashes -r requirements.lock)
	$(BIN)/pip install --quiet $(if $(LOCKED),--no-deps) -e ".[dev]"
	@touch $@

train: .venv/installed
	$(BIN)/python train.py $(ARGS)

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

figures: .venv/installed
	$(BIN)/python -m anneal.figures

bench: .venv/installed
	$(BIN)/python benchmarks $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/python -c "import zensical, mkdocstrings" 2> /dev/null || $(BIN)/pip install --quiet -e ".[docs]"
	$(BIN)/python scripts/site.py

# For Linux and macOS, every Python from 3.11 on; torch for Linux is the index's own, built for CUDA.
lock: .venv/installed
	$(BIN)/pip install --quiet uv
	$(BIN)/pip freeze --exclude-editable > .venv/tested.txt
	$(BIN)/uv pip compile pyproject.toml --extra dev --constraint .venv/tested.txt --universal \
	  --python-version 3.11 --generate-hashes --no-annotate --quiet \
	  --custom-compile-command "make lock" --output-file requirements.lock

rename: .venv/installed
	$(if $(NAME),,$(error say the new name: make rename NAME=...))
	$(BIN)/python scripts/rename.py $(NAME)

slim: .venv/installed
	$(BIN)/python scripts/slim.py
