#!/usr/bin/env bash
# Builds real etcd, etcdctl, etcdutl and grpcurl at the versions of
# tests/reference/go.mod into the given directory.
#
# `go install package@version` refuses modules with replace directives, which
# etcd has; a module that requires them does not see those.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
into=${1:?the directory to build into}
mkdir -p "$into"
into=$(cd "$into" && pwd)
cd "$repository/tests/reference"

declare -A packages=(
    [etcd]=go.etcd.io/etcd/server/v3
    [etcdctl]=go.etcd.io/etcd/etcdctl/v3
    [etcdutl]=go.etcd.io/etcd/etcdutl/v3
    [grpcurl]=github.com/fullstorydev/grpcurl/cmd/grpcurl
)
for name in "${!packages[@]}"; do
    CGO_ENABLED=0 go build -mod=readonly -trimpath -o "$into/$name" "${packages[$name]}"
done
version=$("$into/etcd" --version)
echo "${version%%$'\n'*}"
