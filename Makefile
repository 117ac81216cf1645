# `make demo` and `make test` do all set-up by themselves: Python >= 3.10, gcc, g++, make are enough.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt

BUILD_INPUTS := pyproject.toml setup.py constraints.txt \
                $(wildcard cython_kernels/*.pyx cython_kernels/*.pxd cython_kernels/*.pxi) \
                $(wildcard cython_kernels/*.c cython_kernels/*.h)
CYTHON_SOURCES := $(wildcard cython_kernels/*.pyx cython_kernels/*.pxd cython_kernels/*.pxi)
PYTHON_SOURCES := setup.py faiss_dpq tests bench examples integrations

# The lowest FAISS that pyproject.toml allows. Not tested with it again: networks, which are torch's, distributions, which
# install the newest, what this package's own kernels and training compute, whatever FAISS is beside them, the blocks of
# documents, and what only calls what is tested elsewhere.
LOWEST_FAISS := $(shell sed -n 's/.*"faiss-cpu>=\([0-9.]*\)".*/\1/p' pyproject.toml)
LOWEST       := $(CURDIR)/$(VENV)/faiss-$(LOWEST_FAISS)
UNTOUCHED    := nn_ kernels headers targets simd_level exactness many_ near ordered single.py ties blocks coarse outliers \
                training stacks layers progress fuzz benchmark suggest evaluation datasets documentation shards_ray \
                ann_benchmarks own_vectors large_tables
LEFT_OUT     := -m 'not slow' $(foreach name,$(UNTOUCHED),--ignore-glob='tests/test_$(name)*')

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs figures dist clean

help: ## Show what each target does.
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

# FAISS's threads spin while they wait, by default; where others need the cores, too, that makes
# its trainings several times slower.
demo test figures: export OMP_WAIT_POLICY := passive
# numpy's threads of several test processes wait for each other, spinning: all tests took half as long again.
test: export OPENBLAS_NUM_THREADS := 1

demo: $(VENV)/demo.stamp ## Compare IndexDPQ with FAISS's quantizers on real vectors.
	$(BIN)/faiss-dpq demo

test: lint $(LOWEST) ## Lint; run all tests with the newest FAISS, then those that use FAISS with the lowest allowed.
	$(BIN)/python -m pytest -q -n auto --dist loadgroup
	PYTHONPATH=$(LOWEST) $(BIN)/python -c 'import faiss; assert faiss.__version__ == "$(LOWEST_FAISS)"'
	PYTHONPATH=$(LOWEST) $(BIN)/python -m pytest -q -n auto $(LEFT_OUT)

# cython-lint runs the pycodestyle that it finds on the PATH.
lint: export PATH := $(CURDIR)/$(BIN):$(PATH)
lint: $(VENV)/test.stamp ## Check format, style, types and the direction of imports.
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/cython-lint $(CYTHON_SOURCES)

format: $(VENV)/test.stamp ## Format the Python sources.
	$(BIN)/ruff format $(PYTHON_SOURCES)
	$(BIN)/ruff check --fix $(PYTHON_SOURCES)

docs: $(VENV)/test.stamp ## Build the documentation as a site in build/docs; warnings are errors.
	$(BIN)/python -m bench.check_numbers
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs build/docs

figures: $(VENV)/test.stamp ## Measure the speeds that README and docs tell anew (on a quiet machine), and fill the pages.
	$(BIN)/python -m bench.figures run

dist: $(VENV)/test.stamp ## Build the sdist and the wheel into dist/.
	$(BIN)/python -m build

clean: ## Remove everything that was built.
	rm -rf $(VENV) build dist faiss_dpq.egg-info faiss_dpq/_kernels*.so

# In front of the environment's own on Python's path; all else is the environment's.
$(LOWEST): | $(BIN)/pip
	$(PIP) --no-deps --target $@ faiss-cpu==$(LOWEST_FAISS)

# One environment serves both; a stamp is newer than all that its installation was made from.
$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "faiss-dpq needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(BUILD_INPUTS) | $(BIN)/pip
	@echo "Installing into $(VENV); the first time this takes a minute or two."
	$(PIP) -e '.[bench]'
	touch $@

$(VENV)/test.stamp: $(BUILD_INPUTS) | $(BIN)/pip
	@echo "Installing into $(VENV), torch among it; the first time this takes some minutes."
	$(PIP) -e '.[bench,deep,dev,docs,integrations,notebooks,ray]'
	touch $(VENV)/demo.stamp $@
