# `make book` and `make test` set up .venv by themselves; nothing needs to be installed but Python 3.11 and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: book pdf test lint serve clean

book: $(READY)
	$(BIN)/vireid-lite book

# The same, and the book on paper, which Chromium prints: _build/vireid-lite.pdf.
pdf: $(READY)
	$(BIN)/vireid-lite book --pdf

# Two processes, a file each at a time: most tests are of one core.
test: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache --no-logo

serve: book
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html 8000

clean:
	rm -rf _build

$(READY): pyproject.toml constraints.txt
	$(shell command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch torchvision
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[book,test,cluster]"
	touch $@
