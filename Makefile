# Every command works from a fresh clone: the first one makes .venv (pinned by constraints.txt).
PYTHON ?= python3
BIN    := .venv/bin
ENVS   := .envs

# Tests start hundreds of processes: what one has compiled the next need not compile again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-mutants test-kernels compile-kernels test-wheel test-installed install-real test-real \
        check clean

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --no-compile -c constraints.txt torch
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e '.[engine,dev]'
	touch $@

# The main job on the embedded default: two engines compared for correctness and speed, and a report.
demo: setup
	$(BIN)/pabench bench demo

# The tests, mutants aside; no GPU, no internet beyond the package index. Three workers on two cores, since half the
# time they wait for engines that they have started; what measures time runs after them, alone.
TIMED := $(patsubst %,tests/load/test_%.py,alarm calibrate dispatch keeping outcomes resend timing wire) tests/stub \
  tests/workers/test_ray.py tests/gate/test_live.py tests/cli/test_searches.py
test: setup check
	$(BIN)/pytest tests -n 3 --dist worksteal $(TIMED:%=--ignore=%)
	$(BIN)/pytest $(TIMED)

# The conformance suite against every mutant: does it fail what is broken?
test-mutants: setup
	$(BIN)/pytest tests/conformance -m mutants -n 3 --dist worksteal

# Each attention kernel on a thousand cases, in Triton's interpreter; others that take long.
test-kernels: setup
	$(BIN)/pytest tests -m kernels -n 2 --dist worksteal --timeout 1200

# The kernels for GPUs that are not there: refuses registers that spill to memory.
compile-kernels: setup
	TRITON_DEFAULT_FP_FUSION=1 $(BIN)/python -m paged_kernels.triton_backend.compile

# What the built wheel installs, and what works of it in an empty environment.
test-wheel: setup
	$(BIN)/pytest tests/packaging -m wheel

# ruff, mypy: what pre-commit runs too.
check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

# What downloads more than it computes, one after the other.
test-installed: setup
	$(MAKE) install-real
	$(MAKE) test-wheel
	$(MAKE) compile-kernels

# Real engines in environments of their own: a few gigabytes.
install-real:
	$(PYTHON) tests/real/install.py vllm $(ENVS)/vllm
	$(PYTHON) tests/real/install.py transformers $(ENVS)/transformers

# They are served the probe, checked and loaded.
test-real: setup install-real
	$(BIN)/pytest tests/real -m real -s

clean:
	rm -rf .venv $(ENVS) build dist
