# `make book` and `make test` set up .venv by themselves; nothing needs to be installed but Python 3.11 and make.
PYTHON ?= python3.11
VENV := .venv
ANY_PYTHON = $(shell command -v $(PYTHON) || command -v python3)
PORT ?= 8000
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: book pdf test lint serve port clean

book: $(READY)
	$(BIN)/vireid-lite book

# The same, and the book on paper, which Chromium prints: _build/vireid-lite.pdf.
pdf: $(READY)
	$(BIN)/vireid-lite book --pdf

# Two processes, a file each at a time, in the order of tests/conftest.py: most tests are of one core.
test: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache --no-logo

# The port first, since a book may take minutes.
serve: port book
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

port:
	@$(ANY_PYTHON) -c "import socket; socket.create_server(('127.0.0.1', $(PORT)))" 2>/dev/null || \
	  { echo "port $(PORT) is taken or none of yours; choose another: make serve PORT=8001" >&2; exit 2; }

clean:
	rm -rf _build

$(READY): pyproject.toml constraints.txt
	$(ANY_PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch torchvision
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[book,test,cluster]"
	touch $@
