#!/usr/bin/env bash
# Installs what building the server needs beside Rust: a C++ compiler for
# RocksDB, make for jemalloc, and libclang, with which bindgen reads RocksDB's
# C header. Does nothing when all is there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/apt.sh"

# rust-version in Cargo.toml.
RUST_VERSION=1.89

packages=()
command -v c++ >/dev/null && command -v cc >/dev/null || packages+=(g++)
command -v make >/dev/null || packages+=(make)
# The library is not enough: bindgen also reads the headers that come with clang.
has_libclang() {
    [[ -n ${LIBCLANG_PATH:-} ]] && return
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null &&
        compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null
}
has_libclang || packages+=(libclang-dev)
install_packages "${packages[@]}"

if ! command -v cargo >/dev/null; then
    echo "There is no Rust here: install Rust $RUST_VERSION or later (rustup, or the packages cargo and rustc)." >&2
    exit 1
fi
have=$(rustc --version | cut -d ' ' -f 2)
if ! version_at_least "${have%%-*}" "$RUST_VERSION"; then
    echo "rustc $have is too old: $RUST_VERSION or later is needed." >&2
    exit 1
fi
