#!/usr/bin/env bash
# Starts a server in an empty directory on a free port, runs one client program
# against it and ends with that program's status.
#
#   tests/clients/run.sh go|go35|streams|python|targets|rust|etcdctl|grpcurl|readme|cluster
#
# The program finds the server at STELE_ENDPOINT, at each of STELE_ENDPOINTS (two with a
# comma between them) and at the unix socket STELE_SOCKET.
#
# STELE_SERVER names the server's binary. It may be a real etcd: the flags are
# the same, and every program must pass that needs no reflection, which etcd lacks.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$repository/target}
client=${1:?which client: see the head of tests/clients/run.sh}
server=${STELE_SERVER:-$target/release/stele}
# Python's virtual environment and the Rust client's artifacts.
work=$target/clients
# The server's data and log. Not below the target directory: that may be a slow or shared file system.
scratch=$(mktemp -d)
mkdir -p "$work"
if ! command -v "$server" >/dev/null; then
    echo "run.sh: there is no server at $server (cargo build --release makes it)" >&2
    exit 1
fi

server_id=
stop() {
    if [[ -n $server_id ]]; then
        kill -TERM "$server_id" 2>/dev/null || true
        wait "$server_id" 2>/dev/null || true
    fi
    rm -rf "$scratch"
}
trap stop EXIT

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Ports below the range the kernel hands out by itself (from 32768 up).
free_port() {
    local port
    for _ in {1..50}; do
        port=$((20000 + RANDOM % 12000))
        if is_free "$port" && is_free $((port + 1)) && is_free $((port + 2)); then
            echo "$port"
            return
        fi
    done
    echo "run.sh: found no free port" >&2
    return 1
}

is_healthy() {
    local status
    exec 3<>"/dev/tcp/127.0.0.1/$port" || return 1
    printf 'GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
    read -r -t 2 status <&3 || status=
    exec 3>&-
    [[ $status == *" 200 "* ]]
}

# A variable and a flag for the same option stop the server.
for name in "${!ETCD_@}"; do unset "$name"; done
port=$(free_port)
client_url=http://127.0.0.1:$port
second=127.0.0.1:$((port + 2))
socket=$scratch/socket
# Where peers are listened for is of no matter to a single member. What is advertised to
# them stays the default, so that the member's id is the one the README shows.
"$server" --name default --data-dir "$scratch/data" \
    --listen-client-urls "$client_url,http://$second,unix://$socket" \
    --advertise-client-urls "$client_url" \
    --listen-peer-urls "http://127.0.0.1:$((port + 1))" >"$scratch/log" 2>&1 </dev/null &
server_id=$!

deadline=$((SECONDS + 30))
until is_healthy 2>/dev/null; do
    if ! kill -0 "$server_id" 2>/dev/null || ((SECONDS > deadline)); then
        echo "run.sh: $server did not become healthy; its log:" >&2
        tail -n 50 "$scratch/log" >&2
        exit 1
    fi
    sleep 0.1
done

export STELE_ENDPOINT=127.0.0.1:$port STELE_SERVER=$server
export STELE_ENDPOINTS=$STELE_ENDPOINT,$second STELE_SOCKET=$socket
run_go() { (cd "$here/$1" && go build -o "$work/$client-client" "$2") && "$work/$client-client"; }
run_python() {
    if ! [[ -x $work/python/bin/python ]]; then
        python3 -m venv "$work/python"
    fi
    "$work/python/bin/python" -m pip install --quiet --disable-pip-version-check \
        --requirement "$here/python/requirements.txt" &&
        "$work/python/bin/python" "$here/python/$1"
}
run_client() {
    case $client in
    go | go35) run_go "$client" . ;;
    streams) run_go go ./streams ;;
    python) run_python main.py ;;
    targets) run_python targets.py ;;
    rust)
        CARGO_TARGET_DIR=$work/rust cargo run --quiet --locked --manifest-path "$here/rust/Cargo.toml"
        ;;
    etcdctl | grpcurl | readme | cluster)
        "$here/$client/main.sh"
        ;;
    *)
        echo "run.sh: no client called $client" >&2
        return 2
        ;;
    esac
}

code=0
{ run_client </dev/null 2>&1 >&3 | tee "$scratch/complaint" >&2; } 3>&1 || code=$?
if ((code != 0)); then
    echo "run.sh: the end of the server's log:" >&2
    tail -n 50 "$scratch/log" >&2
    # Whoever reads only the end of a long output has to find the reason there.
    echo "run.sh: the $client client failed with status $code, and said last:" >&2
    tail -n 40 "$scratch/complaint" >&2
fi
exit "$code"
