# Sourced by the install scripts: packages of Debian or Ubuntu, only when something is missing.
# shellcheck shell=bash

# install_packages PACKAGE...: nothing when the list is empty; asks nothing.
install_packages() {
    (($# > 0)) || return 0
    if ! command -v apt-get >/dev/null; then
        echo "Missing here, and there is no apt-get to install it with: $*" >&2
        return 1
    fi
    local as_root=()
    if ((EUID != 0)); then
        if ! command -v sudo >/dev/null; then
            echo "Missing here: $*. Install it as root (apt-get install $*), then run this again." >&2
            return 1
        fi
        as_root=(sudo)
    fi
    echo "Installing: $*" >&2
    # Output goes to stderr, so that a caller's stdout stays its own.
    "${as_root[@]}" apt-get update --quiet --quiet >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --quiet --no-install-recommends "$@" >&2 </dev/null
}

# version_at_least HAVE WANT: both dotted numbers.
version_at_least() { [[ $(printf '%s\n' "$2" "$1" | sort --version-sort | head -n 1) == "$2" ]]; }
