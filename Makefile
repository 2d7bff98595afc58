# Every target does its own set-up: a fresh machine needs Python >= 3.10 and a C++17 compiler, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE_SOURCES := $(wildcard csrc/*.cpp csrc/*.hpp)

.PHONY: setup demo test lint format bench-native

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt CMakeLists.txt $(NATIVE_SOURCES)
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else f"vikhr_fast needs Python 3.10 to 3.13, not {v[0]}.{v[1]}: make PYTHON=/path/to/python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/vikhr-fast demo

# Checked last are the two gates of the kernels, neither of which needs a GPU: every kernel compiles for A100 and H100
# without spills, and every planted mistake in a kernel makes a test fail.
test: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal
	$(BIN)/python -m vikhr_kernels.aot
	$(BIN)/python tests/mutate.py

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The C++ code beside every package that a user could install instead; results and plots in bench/results/<cpu>.
bench-native: setup build/bench/.installed
	$(BIN)/python bench/native/bpe.py

build/bench/.installed: pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench-native]'
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target build/bench/tokenizers-rc 'tokenizers==1.0.0rc3'
	@touch $@
