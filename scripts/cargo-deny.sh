#!/usr/bin/env bash
# Runs cargo-deny, installed from crates.io into the given directory if it is not there.
#
#   scripts/cargo-deny.sh DIRECTORY check ...
set -euo pipefail
DENY_VERSION=0.20.2
root=${1:?where cargo-deny is kept}
shift
deny=$root/bin/cargo-deny
if ! [[ -x $deny && $("$deny" --version) == "cargo-deny $DENY_VERSION" ]]; then
    # Its own target directory: nothing of it is shared with the server.
    CARGO_TARGET_DIR=$root/build cargo install cargo-deny --version "$DENY_VERSION" --locked --root "$root"
    rm -rf "$root/build"
fi
exec "$deny" "$@"
