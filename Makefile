# Everything runs in .venv, made on first use. See README.md.
PYTHON ?= python3
BIN := .venv/bin
MODEL ?= smollm2-135m-instruct
ARGS ?=
SOURCES := CMakeLists.txt $(wildcard csrc/*)

.PHONY: serve chat tiny test test-slow check bench docs format clean

serve: .venv/serve.stamp ## answer on http://127.0.0.1:8000: OpenAI-compatible API and chat page
	$(BIN)/tapwater serve $(MODEL) $(ARGS)

chat: .venv/serve.stamp ## talk to the model in the terminal
	$(BIN)/tapwater chat $(MODEL) $(ARGS)

tiny: .venv/train.stamp ## raw text to a served model, in a quarter of an hour
	runs/tiny.sh

test: .venv/dev.stamp ## the default tests, minutes
	$(BIN)/pytest $(ARGS)

test-slow: .venv/dev.stamp ## the longer proofs too
	$(BIN)/pytest -m 'slow or not slow' $(ARGS)

check: .venv/dev.stamp ## the gate: format, lint, types, layers, docs, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports
	$(BIN)/python tools/reference_docs.py --check
	$(BIN)/pytest $(ARGS)

bench: .venv/dev.stamp ## speed of this machine: prefill and decode
	$(BIN)/python bench/decode.py $(ARGS)

docs: .venv/dev.stamp ## write docs/reference anew from the code
	$(BIN)/python tools/reference_docs.py

format: .venv/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist

# Compiled at once, as pip does with what is not editable: a command of tables starts in a third of a second, not half.
# torch is its own step: a CPU build that is there is taken, and nothing later replaces it.
.venv/torch.stamp: tools/install_torch.py
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "tapwater needs Python 3.11 or newer"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python tools/install_torch.py
	touch $@

.venv/serve.stamp: .venv/torch.stamp pyproject.toml $(SOURCES)
	$(BIN)/python -m pip install -q -e '.[serve,report]'
	$(BIN)/python -m compileall -q src
	touch $@

.venv/train.stamp: .venv/torch.stamp pyproject.toml $(SOURCES)
	$(BIN)/python -m pip install -q -e '.[serve,report,train]'
	$(BIN)/python -m compileall -q src
	touch $@ .venv/serve.stamp

.venv/dev.stamp: .venv/torch.stamp pyproject.toml $(SOURCES)
	$(BIN)/python -m pip install -q -e '.[serve,report,train,dev]'
	$(BIN)/python -m compileall -q src
	touch $@ .venv/serve.stamp .venv/train.stamp
