SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

# In CI the clone is thrown away, the artifacts (RocksDB above all) are not.
ifeq ($(CI),true)
export CARGO_TARGET_DIR ?= $(or $(STELE_TARGET),$(HOME)/.cache/stele/target)
endif
target := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
# Real etcd and its tools.
reference := $(target)/reference
clients := etcdctl grpcurl readme cluster go go35 streams python targets rust

# One profile for everything: RocksDB takes minutes to compile, once.
cargo_flags := --release --locked
# What the crash tests stop the process with; inert unless a test asks.
test_features := --features failpoints

.PHONY: help
help: ## these lines
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

.PHONY: run
run: prerequisites ## build, then serve on 127.0.0.1:2379 with the data in ./default.stele
	cargo run $(cargo_flags) --bin stele -- --data-dir ./default.stele

.PHONY: prerequisites
prerequisites: ## install what building needs and is missing
	@scripts/install-build.sh

.PHONY: test
test: prerequisites ## every Rust test: no network, no etcd
	STELE_ROBUSTNESS=short cargo test $(cargo_flags) $(test_features)

.PHONY: reference
reference: ## real etcd, etcdctl, etcdutl, grpcurl; needs Go, or installs it
	@go=$$(scripts/install-compat.sh); PATH="$$go:$$PATH" scripts/build-reference.sh $(reference)

.PHONY: compat
compat: prerequisites reference ## the scripts against real etcd, 26,000 random requests beside it, real clients
	STELE_COMPAT=1 STELE_REFERENCE_ETCD=$(reference)/etcd \
	    cargo test $(cargo_flags) $(test_features) --test it
	STELE_COMPAT=1 STELE_REFERENCE_ETCD=$(reference)/etcd \
	    cargo test $(cargo_flags) $(test_features) --test differential -- --nocapture
	STELE_COMPAT=1 STELE_REFERENCE_ETCD=$(reference)/etcd \
	    STELE_DIFF_MEMBERS=3 STELE_DIFF_REQUESTS=6000 STELE_DIFF_SEEDS=3 \
	    cargo test $(cargo_flags) $(test_features) --test differential random -- --nocapture
	cargo build $(cargo_flags) $(test_features) --bin stele
	go=$$(scripts/install-compat.sh); \
	for client in $(clients); do \
	    echo "-- $$client"; \
	    CARGO_TARGET_DIR=$(target) PATH="$(reference):$$go:$$PATH" tests/clients/run.sh $$client; \
	done

.PHONY: etcd-tests
etcd-tests: prerequisites reference ## etcd's own suites with stele in etcd's place, an hour and more; STELE_ETCD_TESTS='TestKV' for some
	@[[ -n "$${STELE_BINARY:-}" ]] || cargo build $(cargo_flags) $(test_features) --bin stele
	@go=$$(scripts/install-compat.sh); PATH="$$go:$$PATH" CARGO_TARGET_DIR=$(target) scripts/etcd-tests.sh $(reference)

.PHONY: robustness
robustness: prerequisites ## clusters of real processes under faults; STELE_ROBUSTNESS_ROUNDS=100 for more
	STELE_ROBUSTNESS=1 STELE_REFERENCE_ETCD=$${STELE_REFERENCE_ETCD:-$(reference)/etcd} \
	    cargo test $(cargo_flags) $(test_features) --test robustness -- --nocapture --test-threads 1

.PHONY: bench
bench: prerequisites reference ## a load on etcd, on stele and on a server that stores nothing, side by side: under 40 minutes
	STELE_REFERENCE_ETCD=$(reference)/etcd cargo bench --locked --bench load

.PHONY: bench-quick
bench-quick: prerequisites reference ## the same with small data and short rounds: under 5 minutes
	STELE_REFERENCE_ETCD=$(reference)/etcd cargo bench --locked --bench load -- --quick

.PHONY: bench-scale
bench-scale: prerequisites reference ## what ten million keys do to memory, lists and restarts
	STELE_REFERENCE_ETCD=$(reference)/etcd cargo bench --locked --bench load -- --scale

.PHONY: bench-cluster
bench-cluster: prerequisites reference ## three members of etcd and of stele: puts, gets, how soon after the leader's end
	STELE_REFERENCE_ETCD=$(reference)/etcd cargo bench --locked --bench load -- --cluster

.PHONY: lint
lint: prerequisites ## formatting, clippy and rustdoc, warnings denied
	cargo fmt --check
	cargo fmt --check --manifest-path tests/clients/rust/Cargo.toml
	cargo clippy $(cargo_flags) $(test_features) --all-targets -- -D warnings
	cargo clippy $(cargo_flags) -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" \
	    cargo doc $(cargo_flags) $(test_features) --no-deps --document-private-items

.PHONY: deny
deny: ## licences, sources and duplicates of the dependencies
	@scripts/cargo-deny.sh $(target)/tools check bans licenses sources

.PHONY: docker-test
docker-test: prerequisites ## the image and docker/single.yaml, on a base image made here
	cargo build $(cargo_flags) --bin stele
	CARGO_TARGET_DIR=$(target) scripts/docker-test.sh --local

.PHONY: fmt
fmt: ## format all Rust
	cargo fmt
	cargo fmt --manifest-path tests/clients/rust/Cargo.toml
