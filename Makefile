# SPDX-License-Identifier: Apache-2.0
# The two commands, `make demo` and `make test`, and what developers need beside them. Each installs
# what is missing, builds with CMake into build/<preset> and runs. `make help` lists all.
# Settings: HEARTH_JOBS, HEARTH_DATA, HEARTH_CMAKE_ARGS, FUZZ_SECONDS; INSTALL=0 installs nothing.

SHELL := /bin/sh
INSTALL ?= 1
MODEL ?= models/fable-13m
PROMPT ?= It was a bright morning, and the old captain
TOKENS ?= 200

ifeq ($(INSTALL),0)
install = @:
else
install = @scripts/install.sh $(1)
endif

.PHONY: help demo test golden clients soak slow build asan tsan cuda check format fuzz dist fresh ci install clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1#\2/p' Makefile | awk -F'#' '{ printf "%-15s %s\n", $$1, $$2 }'

demo: ## install, build, serve models/fable-13m and let it write (PROMPT="..." TOKENS=200 DEMO_EXIT=1)
	$(call install)
	@scripts/build.sh cpu hearth
	@MODEL="$(MODEL)" PROMPT="$(PROMPT)" TOKENS="$(TOKENS)" DEMO_EXIT="$(DEMO_EXIT)" scripts/demo.sh

test: ## install, build, run every test that needs no GPU (labels unit and e2e)
	$(call install)
	@scripts/build.sh cpu
	@scripts/run_tests.sh cpu '^(unit|e2e)$$'

golden: ## the tests against large reference data; HEARTH_DATA names its folder
	@if [ -z "$$HEARTH_DATA" ]; then \
	  echo "golden: HEARTH_DATA is not set; it names the folder with the reference models and texts" >&2; exit 1; fi
	@if [ ! -d "$$HEARTH_DATA" ]; then echo "golden: HEARTH_DATA=$$HEARTH_DATA is not a folder" >&2; exit 1; fi
	$(call install)
	@scripts/build.sh cpu
	@scripts/run_tests.sh cpu '^golden$$'

clients: ## the official Python and Node clients against `hearth serve` (LAMBADA=1: LAMBADA over the API; HEARTH_DATA)
	$(call install)
	@scripts/clients.sh $(if $(LAMBADA),--lambada)

soak: ## clients against `hearth serve` for SOAK_SECONDS (600); models that come and go for as long; hostile requests
	$(call install)
	@scripts/build.sh cpu hearth
	@python3 tests/soak/soak.py --seconds $${SOAK_SECONDS:-600} $(SOAK_ARGS) -- --kv-cache-memory-bytes 48M
	@python3 tests/soak/lifecycle.py --seconds $${SOAK_SECONDS:-600} $(SOAK_ARGS) -- --kv-cache-memory-bytes 48M
	@python3 tests/soak/neighbours.py --seconds 10 --exact $(SOAK_ARGS) -- --kv-cache-memory-bytes 48M
	@python3 tests/soak/attacks.py $(SOAK_ARGS)

slow: ## the tests that take too long for every commit
	$(call install)
	@scripts/build.sh cpu
	@scripts/run_tests.sh cpu '^slow$$'

build: ## build everything of preset cpu
	$(call install)
	@scripts/build.sh cpu

asan: ## build with the address and undefined-behaviour sanitizers, run the unit tests
	$(call install)
	@scripts/build.sh asan hearth_tests
	@scripts/run_tests.sh asan '^unit$$'

tsan: ## build with the thread sanitizer, run the unit tests that start threads
	$(call install)
	@scripts/build.sh tsan hearth_tests
	@scripts/run_tests.sh tsan '^unit$$'

cuda: ## compile everything, the CUDA code for sm_90a too; fetches nvcc if there is none
	$(call install,--cuda)
	@scripts/build.sh cuda

check: ## layers, includes, headers that compile alone, format
	$(call install,--dev)
	@python3 tools/check_layers.py
	@python3 tools/check_layers.py --headers
	@tools/check_format.sh

format: ## rewrite all C++ and CUDA files in the format that `make check` wants
	$(call install,--dev)
	@tools/check_format.sh --fix

fuzz: ## run each fuzz target for FUZZ_SECONDS (30)
	$(call install,--dev)
	@scripts/fuzz.sh

dist: ## build/dist/hearth-<version>-linux-x86_64.tar.gz, checked (CUDA=1: with the CUDA backend)
	$(call install,$(if $(CUDA),--cuda))
	@CUDA=$(CUDA) scripts/dist.sh
	@scripts/check_dist.sh

fresh: ## both commands in a bare Debian 12 made by debootstrap; root only
	@scripts/fresh.sh

ci: ## everything that must hold before a change is taken
	@.ci/run

install: ## what `make demo` and `make test` need, and no more
	@scripts/install.sh

clean: ## remove what was built; the CUDA toolkit and the package caches stay
	rm -rf build/cpu build/asan build/tsan build/cuda build/fuzz build/dist build/dist-build build/cargo
