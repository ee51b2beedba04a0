#!/usr/bin/env bash
# Installs what `make compat` needs beside the build: Go (real etcd and its
# tools, Go's client), Python with venv (Python's client), protoc (the Rust
# client generates its messages with it), curl (the README). Does nothing when all
# is there.
#
# Prints, as its only line on stdout, the directory that holds the `go` to use.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
source "$here/apt.sh"

# What go.mod of tests/reference asks for.
go_version=$(sed -n 's/^go //p' "$here/../tests/reference/go.mod")
# A go of this version or later fetches a newer toolchain by itself.
SWITCHING_GO=1.21

packages=()
command -v go >/dev/null || packages+=(golang-go)
python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv)
command -v curl >/dev/null || packages+=(curl)
command -v protoc >/dev/null || packages+=(protobuf-compiler)
[[ -e /usr/include/google/protobuf/struct.proto || -n ${PROTOC:-} ]] || packages+=(libprotobuf-dev)
install_packages "${packages[@]}"

go=$(command -v go)
have=$("$go" version | sed 's/^go version go\([0-9.]*\).*/\1/')
if ! version_at_least "$have" "$go_version"; then
    if version_at_least "$have" "$SWITCHING_GO" && [[ $("$go" env GOTOOLCHAIN) != local* ]]; then
        echo "go $have will fetch the toolchain $go_version that go.mod asks for." >&2
    else
        # Toolchains are modules too: an older go can fetch a newer one as it fetches any module.
        module=golang.org/toolchain@v0.0.1-go$go_version.$("$go" env GOOS)-$("$go" env GOARCH)
        echo "go $have is older than $go_version: fetching $module." >&2
        root=$("$go" mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p')
        if [[ -z $root ]]; then
            echo "go $have is too old and could not fetch $module: install Go $go_version or later." >&2
            exit 1
        fi
        # A module archive holds no file modes.
        chmod -R u+w "$root/bin" "$root/pkg/tool"
        chmod -R +x "$root/bin" "$root/pkg/tool"
        go=$root/bin/go
        "$go" version >&2
    fi
fi
dirname "$go"
