#!/usr/bin/env bash
# Installs Docker's engine, its client and `docker compose` from the
# distribution's packages, and debootstrap for scripts/docker-test.sh. Does
# nothing when all is there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/apt.sh"

has_package() { [[ -n $(apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: \([^(].*\)/\1/p') ]]; }

packages=()
if ! command -v docker >/dev/null || ! command -v dockerd >/dev/null; then
    packages+=(docker.io)
    # Since Debian 13 the client is a package of its own.
    if has_package docker-cli; then packages+=(docker-cli); fi
fi
command -v debootstrap >/dev/null || packages+=(debootstrap)
install_packages "${packages[@]}"
if docker compose version >/dev/null 2>&1; then
    exit
fi

# The plugin's package has another name in each distribution; Debian 12 has only version 1.
for package in docker-compose-plugin docker-compose-v2 docker-compose; do
    if has_package "$package"; then
        install_packages "$package"
        break
    fi
done
if docker compose version >/dev/null 2>&1; then
    exit
fi

# Version 1 takes the same command line, but is not the plugin that `docker
# compose` looks for: a plugin describes itself and gets its own name as first argument.
plugins=${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins
mkdir -p "$plugins"
cat >"$plugins/docker-compose" <<'PLUGIN'
#!/bin/sh
if [ "$1" = docker-cli-plugin-metadata ]; then
    echo '{"SchemaVersion": "0.1.0", "Vendor": "docker-compose 1", "Version": "1", "ShortDescription": "Docker Compose"}'
    exit
fi
shift
exec docker-compose "$@"
PLUGIN
chmod +x "$plugins/docker-compose"
docker compose version
