# Thin on purpose: each target names a step and calls the tool that does it. `make help` lists them.

ARCH     ?= amd64
ARCHES   ?= amd64
musl-target = $(if $(filter arm64,$(1)),aarch64,x86_64)-unknown-linux-musl
TARGET   := $(call musl-target,$(ARCH))
musl-dir = $(CURDIR)/target/musl$(if $(filter arm64,$(1)),-arm64)
# What is made for another architecture than most machines have stands beside the rest, under its name.
OF_ARCH  := $(if $(filter arm64,$(ARCH)),-arm64)
MUSL_DIR := $(call musl-dir,$(ARCH))
agent-of = $(call musl-dir,$(1))/target/$(call musl-target,$(1))/release/selvage
AGENT    := $(call agent-of,$(ARCH))
NODES    ?= 2
NODE     ?= 1
TIME     ?= 600
ANCHOR   ?= 3
CHANNEL  ?= stable
export KEYS SEVERITY ROLL_OUT FROM NOTES

# rustup's musl target when it is installed; else a sysroot made once from the distribution's Rust sources.
HAVE_STD = $(wildcard $(shell rustc --print target-libdir --target $(TARGET) 2>/dev/null)/libstd-*.rlib)
MUSL_ENV = CARGO_TARGET_DIR=$(MUSL_DIR)/target RUSTFLAGS="$(REMAP) $(NO_UNWIND)" \
           $(if $(HAVE_STD),,RUSTC=$(MUSL_DIR)/bin/rustc RUSTDOC=$(MUSL_DIR)/bin/rustdoc) \
           CC_aarch64_unknown_linux_musl=aarch64-linux-gnu-gcc \
           CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=aarch64-linux-gnu-gcc
# No path of the build host in the agent: two builds in different places are the same bytes.
REMAP    = --remap-path-prefix=$(MUSL_DIR)=target --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=cargo
# A panic says what and where, and ends the process. Tables for unwinding would be a twelfth of the binary, and show nothing
# even in a backtrace, since `strip` takes the names.
NO_UNWIND = -C force-unwind-tables=no
# Namespaces and file owners need root; whoever has sudo need not be it.
SUDO     = $(if $(filter 0,$(shell id -u)),,sudo)
# Tools of the checks that the distribution does not package; unoptimised, since they run for seconds.
cargo-tool = { echo "Installing $(1) from crates.io (a few minutes, once)"; CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
  CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 cargo install --quiet --locked $(1); }
# How often each test is run; .config/nextest.toml has the rest.
STRESS   = $(if $(RUNS),--stress-count $(RUNS))
# The tests in namespaces wait most of the time: for a lease to end, for a probe to get no answer.
NETNS_THREADS = $(shell expr 4 '*' $$(nproc))
FUZZ_PROFILE = CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
# Where cargo puts them; a distribution's cargo does not see to it that a shell looks there.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
HARNESS  = cargo run --quiet --locked -p qemu-tests --

.DEFAULT_GOAL := help
.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 16

# All that a whole run needs is installed before its long work begins: `packages-build-image` for the groups build and
# image.
packages-%:
	@agent/host-packages $(subst -, ,$*)

.PHONY: demo
demo: packages-build-image-qemu ## Boot a cluster from the image and show its containers talking (NODES=2 KEEP=1)
	@$(MAKE) --no-print-directory -j2 image harness
	@$(HARNESS) demo --nodes $(NODES) $(if $(KEEP),--keep)

.PHONY: demo-update
demo-update: packages-build-image-qemu ## Boot three machines that update themselves in turn, and draw the time line of it
	@$(MAKE) --no-print-directory -j2 image-next harness
	@$(HARNESS) demo-update

# Not in CI: pyspark is 430 MB to download, and Java and Spark take 4 GB of memory.
.PHONY: demo-spark
demo-spark: packages-build-spark agent target/pyspark/ready ## Run Spark on three hosts in network namespaces, and kill an agent and etcd meanwhile; needs root
	@$(if $(SUDO),CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER='sudo -E') $(HARNESS) demo-spark --agent $(AGENT)

target/pyspark/ready: qemu-tests/spark/requirements.txt
	@echo "Installing pyspark from PyPI (430 MB to download, 500 MB on disk; once)"
	@rm -rf target/pyspark && python3 -m venv target/pyspark
	@target/pyspark/bin/pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps -r $< && touch $@

.PHONY: ssh
ssh: ## Log in to a node of a cluster that `make demo KEEP=1` left running (NODE=1)
	@$(HARNESS) ssh node$(NODE)

.PHONY: stop
stop: ## Stop the cluster that `make demo KEEP=1` left running
	@$(HARNESS) stop

.PHONY: test
test: packages-build-test-image-oci-containers-qemu ## Everything that CI runs; what fails hides nothing that comes after it
	@MAKE='$(MAKE)' .ci/tiers check test-unit test-netns test-oci test-qemu

.PHONY: check
check: packages-build-test ## Formatting, lints, licences, shell scripts, unit files
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@command -v cargo-deny >/dev/null || $(call cargo-tool,cargo-deny)
	cargo deny --log-level error check --hide-inclusion-graph bans licenses sources
	shellcheck $(shell git grep -lI '^#!.*sh$$' -- . ':!*.rs' ':!*.md')
	agent/verify-units units/system image/mkosi.extra/usr/lib/systemd/system image/sysexts.d/*.extra/usr/lib/systemd/system

.PHONY: test-unit
test-unit: packages-build-test ## Unit and property tests; need no privileges (RUNS=20)
	@command -v cargo-nextest >/dev/null || $(call cargo-tool,cargo-nextest)
	cargo nextest run --locked $(STRESS) --workspace --lib --bins

.PHONY: test-netns
test-netns: packages-build-test target/venv/bin/pyspdxtools ## Tests with the real etcd and the real kernel, in network namespaces; need root (RUNS=20 SEEDS=1000)
	@command -v cargo-nextest >/dev/null || $(call cargo-tool,cargo-nextest)
	filter=$$($(SUDO) agent/tests/kernel) && $(if $(SUDO),CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER='sudo -E') \
	  cargo nextest run --locked $(STRESS) --test-threads $(NETNS_THREADS) -p selvage --test '*' --run-ignored all -E "$$filter"

# Optimised, beside what the other tests are built to.
.PHONY: simulate
simulate: NODES = 65000
simulate: packages-build ## Put 65,000 nodes of the agent's lease store on a cluster in memory, and print what etcd has to do (NODES=)
	NODES=$(NODES) CARGO_PROFILE_DEV_OPT_LEVEL=2 cargo test --quiet --locked -p selvage --lib -- --ignored --nocapture simulation_tests

# The tests that need the image's kernel, as programs to be run in it.
.PHONY: agent-tests
agent-tests: packages-build
	@mkdir -p target
	cargo test --quiet --locked --no-run -p selvage --test netns --test overlay --message-format json >target/agent-tests.json

# The reference implementation of SPDX judges the list of what the image consists of.
# Without it that one test fails, and says so; all others have a result.
target/venv/bin/pyspdxtools: agent/tests/image_scripts/requirements.txt
	@python3 -m venv target/venv && target/venv/bin/pip install --quiet --disable-pip-version-check --no-deps -r $< && touch $@ || \
	  echo "spdx-tools could not be installed: the test that wants it will fail" >&2

.PHONY: test-qemu
test-qemu: packages-build-image-qemu image agent-tests ## Tests that boot the image
	$(HARNESS) test

.PHONY: test-qemu-all
test-qemu-all: packages-build-image-qemu image-next image-signed sysexts sysexts-signed sysexts-stand-ins agent-tests ## The same, with the cases that take long
	$(HARNESS) test --all

# Not in CI: on another machine than one of its own, all of it is emulated, the build's last steps too.
.PHONY: test-arm64
test-arm64: packages-build-image-qemu-arm64 ## Build the image for arm64, boot two machines of it, and run the tests of a first boot there
	@$(MAKE) --no-print-directory image harness ARCH=arm64
	$(HARNESS) --image target/image-arm64 test first_boot::

.PHONY: test-fresh
test-fresh: packages-image packages ## Install in new minimal systems of Debian 12 and 13, build in one (half an hour; ROOTS=)
	@$(SUDO) agent/tests/fresh/run $(ROOTS)

.PHONY: agent
agent: packages-build$(OF_ARCH) ## Build the static agent (ARCH=arm64)
	@$(if $(HAVE_STD),,agent/musl-sysroot.sh $(MUSL_DIR) /usr/bin/rustc $(TARGET))
	$(MUSL_ENV) cargo build --locked --release --target $(TARGET) -p selvage
	@cargo metadata --quiet --locked --format-version 1 --filter-platform $(TARGET) >$(AGENT).metadata.json
	@! readelf -lW $(AGENT) | grep -q INTERP || { echo "$(AGENT) wants a program interpreter: not static" >&2; exit 1; }
	@! readelf -dW $(AGENT) | grep -q NEEDED || { echo "$(AGENT) wants shared libraries: not static" >&2; exit 1; }

.PHONY: image
image: packages-build-image$(OF_ARCH) agent ## Build the bootable image and the artefacts of an update to it (VERSION= KEYS= ARCH=arm64)
	@version=$$(image/version) epoch=$$(image/epoch) && \
	  $(SUDO) env VERSION=$$version SOURCE_DATE_EPOCH=$$epoch KEYS="$(KEYS)" image/build $(AGENT) target/image$(OF_ARCH)

.PHONY: lock
lock: packages-build-image$(OF_ARCH) agent ## Build the image of the newest packages, and record their versions (ARCH=arm64)
	@version=$$(image/version) epoch=$$(image/epoch) && \
	  $(SUDO) env VERSION=$$version SOURCE_DATE_EPOCH=$$epoch UPDATE_LOCK=1 image/build $(AGENT) target/image$(OF_ARCH)

# The same with a higher version and of a later time: what the tests of updates update to.
.PHONY: image-next
image-next: image
	@version=$$(image/version) epoch=$$(image/epoch) && \
	  $(SUDO) env VERSION=$$version.1 SOURCE_DATE_EPOCH=$$((epoch + 1)) KEYS="$(KEYS)" \
	    image/build $(AGENT) target/image-next

# Both with keys: what the tests of Secure Boot install and update to.
.PHONY: image-signed
image-signed: packages-build-image agent target/keys/db.auth ## The image and its next version, signed by target/keys
	@version=$$(image/version) epoch=$$(image/epoch) && \
	  $(SUDO) env VERSION=$$version SOURCE_DATE_EPOCH=$$epoch KEYS=target/keys \
	    image/build $(AGENT) target/image-signed && \
	  $(SUDO) env VERSION=$$version.1 SOURCE_DATE_EPOCH=$$((epoch + 1)) KEYS=target/keys \
	    image/build $(AGENT) target/image-signed-next

# Made once: the last file of a set.
target/keys/db.auth:
	@image/keys target/keys

.PHONY: images
images: packages-build-image-qemu image ## Put the image into what clouds, hypervisors and PXE take (DIR=target/images FORMATS="qcow2 vhd" ARCH=arm64)
	@image/formats target/image$(OF_ARCH) $(or $(DIR),target/images$(OF_ARCH)) $(FORMATS)

.PHONY: sysexts
sysexts: image ## Build the system extensions of the image: debug, ipsec, podman, with given programs kubernetes (KEYS= NAMES= KUBERNETES= ARCH=arm64)
	@$(SUDO) env KEYS="$(KEYS)" KUBERNETES="$(KUBERNETES)" image/sysexts target/image$(OF_ARCH) target/sysexts$(OF_ARCH) $(NAMES)

# Of the signed image: what it merges, and what not.
.PHONY: sysexts-signed
sysexts-signed: image-signed
	@$(SUDO) env KEYS=target/keys image/sysexts target/image-signed target/sysexts-signed debug

# Apart from what a release takes: programs of the tests in the place of Kubernetes' own.
.PHONY: sysexts-stand-ins
sysexts-stand-ins: image
	@$(SUDO) env KUBERNETES=qemu-tests/kubernetes image/sysexts target/image target/sysexts-stand-ins kubernetes

# From nothing each time, so it takes as long as two first builds.
.PHONY: reproduce
reproduce: packages-build-image-qemu ## Build the commit twice in other surroundings, and compare (FORMATS=)
	@image/reproduce $(CURDIR)/target/reproduce $(FORMATS)

.PHONY: keys
keys: packages-release ## Make a set of keys for signed images and releases, fit for tests (DIR=)
	@image/keys $(or $(DIR),$(error DIR is not set: name the directory for the keys))

.PHONY: release
release: packages-release image ## Publish the built image in a channel (DIR= KEYS= CHANNEL=stable SEVERITY= ROLL_OUT= FROM= NOTES=)
	@image/release $(or $(DIR),$(error DIR is not set: name the directory that the release server serves)) $(CHANNEL)

.PHONY: promote
promote: packages-release ## Publish the newest version of one channel in another, as it is (DIR= KEYS= FROM_CHANNEL=beta CHANNEL=stable)
	@image/release --promote $(or $(DIR),$(error DIR is not set: name the directory that the release server serves)) \
	  $(or $(FROM_CHANNEL),$(error FROM_CHANNEL is not set: name the channel that has the version)) $(CHANNEL)

.PHONY: check-release
check-release: packages-release ## See whether all that is published is whole and signed (DIR= KEYS=)
	@image/release --check $(or $(DIR),$(error DIR is not set: name the directory that the release server serves))

.PHONY: harness
harness: packages-build # What boots the image; the demo has it compiled beside the image
	@cargo build --quiet --locked -p qemu-tests

# What the image has as well, but for what only a whole system of ours needs. agent/docs/hosts.md goes on from here.
.PHONY: install
install: agent ## Install the agent and its units on a host that is not the image (DESTDIR=)
	agent/packages/install $(AGENT) $(DESTDIR)

.PHONY: packages
packages: packages-build-pack agent ## Pack the agent for other hosts: a .deb, and a sysext for Flatcar and Fedora CoreOS (DIR=target/packages)
	@agent/packages/build $(AGENT) $(DIR)

# Each architecture's agent is built first; image/README.md says what it takes to build for another machine.
.PHONY: oci
oci: packages-build-oci ## Build the container image of the agent, as a layout and an archive (IMAGE=name ARCHES="amd64 arm64")
	@for arch in $(ARCHES); do $(MAKE) --no-print-directory agent ARCH=$$arch || exit; done
	@IMAGE="$(IMAGE)" image/oci target/oci $(foreach arch,$(ARCHES),$(call agent-of,$(arch)))

.PHONY: test-oci
test-oci: packages-build-oci-containers ## Build the container image twice, and run it as a pod; needs root (ARCHES="amd64 arm64")
	@for arch in $(ARCHES); do $(MAKE) --no-print-directory agent ARCH=$$arch || exit; done
	@$(SUDO) agent/tests/oci/run $(foreach arch,$(ARCHES),$(call agent-of,$(arch)))

.PHONY: manifests
manifests: packages-build ## Write the manifest for Kubernetes anew from the chart in units/kubernetes
	@UPDATE=1 cargo test --quiet --locked -p selvage --test manifests the_manifest_is_what_the_chart_renders_to

.PHONY: bench
bench: packages-build-test agent ## Measure the agent and print a table (FLANNELD=/path puts flanneld beside it; ONLY=part TURNS=1; HISTORY=1 NOTES= writes it down)
	@VERSION=$$(image/version) HISTORY=$(HISTORY) $(if $(SUDO),CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER='sudo -E') SELVAGE_BIN=$(AGENT) FLANNELD=$(abspath $(FLANNELD)) \
	  cargo bench --quiet --locked -p selvage --profile dev --bench agent

.PHONY: bench-boot
bench-boot: packages-build-image-qemu image $(if $(filter-out 0,$(ANCHOR)),anchor) ## Measure the boot of the image beside Debian's, in pairs (ANCHOR=3; VERITY=5 with dm-verity and without; HISTORY=1 NOTES= writes it down)
	@$(HARNESS) bench --anchor $(ANCHOR) $(if $(VERITY),--verity $(VERITY)) $(if $(HISTORY),--history "$${NOTES:--}")

# Debian with the image's packages, as they come: what the image's boot is compared with.
.PHONY: anchor
anchor: packages-image
	@$(SUDO) image/anchor

# Built with a sanitizer, for which a released compiler must be told to take unstable flags. New inputs stay out of the
# repository, whose small corpus only gives the direction.
.PHONY: fuzz
fuzz: packages-build ## Feed random input to all that reads others' words (TIME=600 seconds for each target)
	@command -v cargo-fuzz >/dev/null || $(call cargo-tool,cargo-fuzz)
	@set -e; cd agent/fuzz; for target in $$(cargo fuzz list); do \
	  echo "Fuzzing $$target for $(TIME) s"; mkdir -p $(CURDIR)/target/fuzz/corpus/$$target; \
	  RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$(CURDIR)/target/fuzz $(FUZZ_PROFILE) cargo fuzz run $$target \
	    $(CURDIR)/target/fuzz/corpus/$$target corpus/$$target -- -max_total_time=$(TIME) -print_final_stats=1; done

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf target
