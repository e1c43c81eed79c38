# Two commands do all the set-up: `make demo` and `make test`. Both make .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT := out

.PHONY: demo test test-full test-floor test-newest lint types docs bench package venv clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mpskit needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable '.[cli,plot]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/mpskit doctor
	$(BIN)/python examples/train_text.py --out $(OUT)

test: $(STAMP)
	$(BIN)/python -m pytest -m 'not full' -n auto --dist worksteal

test-full: $(STAMP)
	$(BIN)/python -m pytest

# The oldest torch that is supported, and the newest that installs, each in an environment of its
# own; PyPI's builds for CUDA, without the libraries of a card. tests/integrations needs packages
# that are installed in .venv only.
test-floor: TORCH := 2.2.2
test-newest: TORCH := newest
test-floor test-newest: test-%:
	$(PYTHON) scripts/torch_env.py $(VENV)-$* $(TORCH)
	$(VENV)-$*/bin/python -m pytest -m 'not full' -n auto --dist worksteal --ignore tests/integrations

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/pyright

# The pages' examples, then the site in out/docs. tests/docs has their links, and with test-full their commands.
docs: $(STAMP)
	$(BIN)/python -m pytest --doctest-glob='*.md' -o addopts='--strict-markers' docs README.md README.zh-CN.md
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs $(OUT)/docs

# What goes to PyPI, and what two tools say of it.
package: $(STAMP)
	rm -rf $(OUT)/dist
	$(BIN)/python -m build --no-isolation --outdir $(OUT)/dist
	$(BIN)/python -m twine check --strict $(OUT)/dist/*
	$(BIN)/check-wheel-contents $(OUT)/dist/*.whl

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) $(VENV)-floor $(VENV)-newest $(OUT) .pytest_cache .mypy_cache .ruff_cache
