# The engine's part of the Makefile: it comes with each upgrade, so edit the Makefile instead.
#
# make setup    install all of it into .venv: what training needs (`train` installs this much by
#               itself), and the tools of development (so do `test` and `lint`)
# make lock     write requirements.lock: the versions that are installed, with their hashes
# make rename   NAME=...: give the package of the project, and nothing else, a name of yours
# make upgrade  VERSION=tag FROM=address or folder of the template (kept for the next time):
#               replace the engine, merge your edits of it, and list what else has changed
#
# LOCKED=1           install exactly what is in requirements.lock, the tools of development included
# TORCH_INDEX=URL    take torch from there: pytorch.org's "Start Locally" has one without CUDA
# PYTHON=python3.13  make .venv with this Python

PYTHON ?= python3
LOCKED ?=
TORCH_INDEX ?=
BIN := .venv/bin
ENGINE := src/anneal
CONTRACTS := $(ENGINE)/contracts.toml
LOCKABLE := $(ENGINE)/requirements.txt $(ENGINE)/requirements-dev.txt \
  $(ENGINE)/requirements-export.txt $(ENGINE)/requirements-optim.txt \
  $(ENGINE)/requirements-stream.txt $(ENGINE)/requirements-timm.txt
# PyPI has an unrelated project of the engine's name: the one that is imported must be this.
CHECK_IMPORT := $(BIN)/python $(ENGINE)/clone/check_import.py

.PHONY: setup lock rename upgrade
setup: .venv/installed-dev
	@$(CHECK_IMPORT)

# Both are installed again only when a file after the colon changes.
.venv/installed: pyproject.toml $(wildcard requirements.txt) $(ENGINE)/requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Anneal needs Python 3.11 or newer')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --index-url "$(TORCH_INDEX)" torch torchvision)
	$(if $(LOCKED),$(BIN)/pip install --quiet --require-hashes -r requirements.lock)
	$(BIN)/pip install --quiet $(if $(LOCKED),--no-deps) -e .
	@$(CHECK_IMPORT)
	@touch $@

.venv/installed-dev: .venv/installed $(LOCKABLE)
	$(BIN)/pip install --quiet $(if $(LOCKED),--no-deps) -e ".[dev,export,optim,stream,timm]"
	@touch $@

# For Linux and macOS, every Python from 3.11 on; torch for Linux is the index's own, built for CUDA.
lock: .venv/installed-dev
	$(BIN)/pip install --quiet uv
	$(BIN)/pip freeze --exclude-editable > .venv/tested.txt
	$(BIN)/uv pip compile $(wildcard requirements.txt) $(LOCKABLE) --constraint .venv/tested.txt \
	  --universal --python-version 3.11 --generate-hashes --no-annotate --quiet \
	  --custom-compile-command "make lock" --output-file requirements.lock

rename: .venv/installed-dev
	$(if $(NAME),,$(error say the new name: make rename NAME=...))
	@$(BIN)/python $(ENGINE)/clone/rename.py $(NAME)

upgrade: .venv/installed
	$(if $(VERSION),,$(error say the version: make upgrade VERSION=v2.2.0 FROM=address or folder))
	@$(BIN)/python $(ENGINE)/clone/upgrade.py $(VERSION) $(if $(FROM),--from="$(FROM)")
