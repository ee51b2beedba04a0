#!/usr/bin/env bash
# Tries docker/ for real: builds the image, brings docker/single.yaml up, uses
# the member through etcdctl from outside, kills and restarts it, does the same
# and more with the three members of docker/cluster.yaml, and takes all of it
# down again. Needs root where no Docker daemon runs yet: it then starts
# one for the time of the test.
#
#   scripts/docker-test.sh            the published base images, compiled in the image
#   scripts/docker-test.sh --local    no registry needed: a base image made by debootstrap
#                                     and the binary of `cargo build --release`
#   scripts/docker-test.sh --local --compile   the same base with this machine's Rust in
#                                     it, compiled in the image
#
# With --local, STELE_BINARY names another build, or real etcd: what is expected here is what
# etcd does.
# ETCDCTL names the etcdctl to use (default: the one of `make compat`, else the path's).
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repository"
target=${CARGO_TARGET_DIR:-$repository/target}
local=false compile=false
for argument in "$@"; do
    case $argument in
    --local) local=true ;;
    --compile) compile=true ;;
    *) echo "docker-test.sh: unknown argument $argument" >&2 && exit 2 ;;
    esac
done
scripts/install-docker.sh
if [[ -z ${ETCDCTL:-} ]]; then
    # With its path: a function below has its name.
    ETCDCTL=$(type -P etcdctl || true)
    [[ -x $target/reference/etcdctl ]] && ETCDCTL=$target/reference/etcdctl
    [[ -n $ETCDCTL ]] || { echo "docker-test.sh: no etcdctl (make reference)" >&2 && exit 1; }
fi
# An image and a project of its own names: nothing of the user's is touched.
export STELE_IMAGE=stele-test COMPOSE_PROJECT_NAME=stele-test
BASE=stele-test-base TOOLCHAIN=stele-test-rust

scratch=$(mktemp -d)
daemon=
is_up=false
fourth=
yaml=docker/single.yaml
compose() { docker compose -f "$yaml" "$@"; }
finish() {
    local code=$?
    if $is_up; then
        ((code == 0)) || compose logs --tail 50 >&2 || true
        [[ -z $fourth ]] || docker rm --force --volumes "$fourth" >/dev/null || true
        compose down --volumes || true
    fi
    if [[ -n $daemon ]]; then
        kill "$daemon"
        wait "$daemon" || true
    fi
    rm -rf "$scratch"
    exit "$code"
}
trap finish EXIT

if ! docker info >/dev/null 2>&1; then
    dockerd >"$scratch/dockerd.log" 2>&1 &
    daemon=$!
    for _ in {1..60}; do
        docker info >/dev/null 2>&1 && break
        if ! kill -0 "$daemon" 2>/dev/null; then
            tail -n 30 "$scratch/dockerd.log" >&2
            exit 1
        fi
        sleep 1
    done
    docker info >/dev/null
fi

# A base image of this machine's own release, so that a binary built here runs in it.
make_base_image() {
    docker image inspect "$BASE" >/dev/null 2>&1 && return
    (
        # shellcheck source=/dev/null
        source /etc/os-release
        debootstrap --variant=minbase "$VERSION_CODENAME" "$scratch/root" >"$scratch/debootstrap.log" ||
            { tail -n 30 "$scratch/debootstrap.log" >&2 && exit 1; }
    )
    rm -rf "$scratch"/root/var/cache/apt/archives/*.deb
    tar --directory "$scratch/root" --create . | docker import - "$BASE" >/dev/null
}

# The base with this machine's Rust and its certificates in place of the image rust:1-bookworm.
make_toolchain_image() {
    docker image inspect "$TOOLCHAIN" >/dev/null 2>&1 && return
    local context=$scratch/toolchain
    mkdir -p "$context"
    cp -r "$(rustc --print sysroot)" "$context/rust"
    rm -rf "$context/rust/share"
    cp -rL /etc/ssl/certs "$context/certs"
    docker build --tag "$TOOLCHAIN" --file - "$context" <<DOCKERFILE
FROM $BASE
COPY rust /usr/local
COPY certs /etc/ssl/certs
DOCKERFILE
}

if $local; then
    make_base_image
    export RUNTIME_IMAGE=$BASE BUILD_IMAGE=$BASE
    if $compile; then
        make_toolchain_image
        export BUILD_IMAGE=$TOOLCHAIN
        compose build
    else
        binary=${STELE_BINARY:-$target/release/stele}
        context=$scratch/context
        mkdir -p "$context"
        cp -r docker scripts "$context"
        strip --strip-debug -o "$context/stele" "$binary"
        docker build --tag "$STELE_IMAGE" --file docker/Dockerfile --build-arg PREBUILT=stele \
            --build-arg BUILD_IMAGE="$BUILD_IMAGE" --build-arg RUNTIME_IMAGE="$RUNTIME_IMAGE" "$context"
    fi
else
    compose build
fi
docker image inspect --format 'image: {{.Size}} bytes' "$STELE_IMAGE"

is_up=true
compose up -d
container=$(compose ps -q stele)
wait_until_healthy() {
    local id=${1:-$container}
    for _ in {1..60}; do
        [[ $(docker inspect --format '{{.State.Health.Status}}' "$id") == healthy ]] && return
        sleep 1
    done
    echo "docker-test.sh: the container did not become healthy" >&2
    return 1
}
expect() {
    if [[ $2 != "$3" ]]; then
        printf 'docker-test.sh: %s: expected %q, got %q\n' "$1" "$2" "$3" >&2
        exit 1
    fi
    echo "ok $1"
}
wait_until_healthy
etcdctl() { "$ETCDCTL" --endpoints localhost:2379 "$@"; }
expect put OK "$(etcdctl put greeting hello)"
expect get $'greeting\nhello' "$(etcdctl get greeting)"
etcdctl endpoint health
etcdctl member list
expect 'user in the container' 10001 "$(docker exec "$container" id -u)"

docker kill "$container" >/dev/null
docker start "$container" >/dev/null
wait_until_healthy
expect 'after a kill' $'greeting\nhello' "$(etcdctl get greeting)"

compose stop
expect 'exit code after SIGTERM' 0 "$(docker inspect --format '{{.State.ExitCode}}' "$container")"
compose up -d
container=$(compose ps -q stele)
wait_until_healthy
expect 'after a stop' $'greeting\nhello' "$(etcdctl get greeting)"
compose down --volumes
is_up=false

# Other ways in which etcd's image is run: no arguments, bare flags, variables, the binary's path.
run_briefly() {
    local name=$1 id
    shift
    id=$(docker run --detach --publish 127.0.0.1:2379:2379 "$@")
    for _ in {1..60}; do
        etcdctl endpoint health >/dev/null 2>&1 && break
        sleep 0.5
    done
    if ! etcdctl put a "$name" >/dev/null; then
        docker logs "$id" >&2
        docker rm --force --volumes "$id" >/dev/null
        exit 1
    fi
    docker rm --force --volumes "$id" >/dev/null
    echo "ok $name"
}
urls=(--listen-client-urls http://0.0.0.0:2379 --advertise-client-urls http://localhost:2379)
run_briefly 'no arguments' "$STELE_IMAGE"
run_briefly 'bare flags' "$STELE_IMAGE" "${urls[@]}"
run_briefly "the binary's path" "$STELE_IMAGE" /usr/local/bin/etcd "${urls[@]}"
run_briefly 'a volume at /etcd-data' --volume /etcd-data "$STELE_IMAGE" etcd --data-dir /etcd-data "${urls[@]}"
run_briefly variables --env ETCD_LISTEN_CLIENT_URLS=http://0.0.0.0:2379 \
    --env ETCD_ADVERTISE_CLIENT_URLS=http://localhost:2379 "$STELE_IMAGE"

# Three members.
yaml=docker/cluster.yaml
is_up=true
compose up -d --no-build
for member in stele1 stele2 stele3; do
    wait_until_healthy "$(compose ps -q "$member")"
done
through() { "$ETCDCTL" --endpoints "localhost:$1" "${@:2}"; }
# What a column of `endpoint status` says of the members for which another column has a value.
status_of() {
    through 2379 endpoint status --cluster |
        awk -F ', ' -v column="$1" -v where="$2" -v is="$3" '$where == is { print $column }'
}
ENDPOINT=1 ID=2 IS_LEADER=9 IS_LEARNER=10
id_of() { through 2379 member list | awk -F ', ' -v name="$1" '$3 == name { print $1 }'; }
# Repeats what may fail while members come and go, up to half a minute.
in_time() {
    local what=$1
    shift
    for _ in {1..60}; do
        "$@" >"$scratch/last" 2>&1 && echo "ok $what" && return
        sleep 0.5
    done
    cat "$scratch/last" >&2
    echo "docker-test.sh: $what: not in time" >&2
    return 1
}
is_steady() { [[ $(status_of $ID $IS_LEADER true | wc -l) == 1 ]]; }
# As many members hold the same data at the same revision.
hold_the_same() {
    through 2379 endpoint hashkv --cluster | awk -F ', ' -v members="$1" \
        '{ seen[$2 ", " $3]++ } END { for (hash in seen) if (seen[hash] == members) exit 0; exit 1 }'
}
expect 'put through one member' OK "$(through 2379 put greeting hello)"
for port in 2379 22379 32379; do
    expect "get through port $port" $'greeting\nhello' "$(through "$port" get greeting)"
done
expect 'members' $'stele1\nstele2\nstele3' \
    "$(through 2379 member list | awk -F ', ' '$2 == "started" { print $3 }' | sort)"
expect 'leaders' 1 "$(status_of $ID $IS_LEADER true | wc -l)"
in_time 'all hold the same' hold_the_same 3

leader=$(status_of $ID $IS_LEADER true) follower=$(status_of $ID $IS_LEADER false | head -n 1)
expect 'move-leader' "Leadership transferred from $leader to $follower" \
    "$("$ETCDCTL" --endpoints "$(status_of $ENDPOINT $IS_LEADER true)" move-leader "$follower" 2>&1)"
in_time 'one leader' is_steady
expect 'the leader' "$follower" "$(status_of $ID $IS_LEADER true)"

# A fourth member learns, becomes a voter and is removed.
in_time 'member add --learner' \
    through 2379 member add stele4 --learner --peer-urls http://stele4:2380
four=stele4=http://stele4:2380
for number in 1 2 3; do
    four+=,stele$number=http://stele$number:2380
done
fourth=$(docker run --detach --network stele-test_default --network-alias stele4 \
    --publish 127.0.0.1:42379:2379 "$STELE_IMAGE" etcd --name stele4 \
    --data-dir /var/lib/etcd --listen-client-urls http://0.0.0.0:2379 \
    --advertise-client-urls http://localhost:42379 --listen-peer-urls http://0.0.0.0:2380 \
    --initial-advertise-peer-urls http://stele4:2380 --initial-cluster "$four" \
    --initial-cluster-state existing --initial-cluster-token stele-cluster)
in_time 'the learner runs' through 42379 endpoint status
expect 'learners' 1 "$(status_of $ID $IS_LEARNER true | wc -l)"
expect 'a learner answers for itself' $'greeting\nhello' \
    "$(through 42379 get greeting --consistency=s)"
in_time 'member promote' through 2379 member promote "$(id_of stele4)"
expect 'learners' 0 "$(status_of $ID $IS_LEARNER true | wc -l)"
in_time 'get through the fourth' through 42379 get greeting
in_time 'all hold the same' hold_the_same 4
in_time 'member remove' through 2379 member remove "$(id_of stele4)"
expect 'exit code of who was removed' 0 "$(timeout 30 docker wait "$fourth")"
docker rm --volumes "$fourth" >/dev/null
fourth=

# One is killed and comes back.
docker kill "$(compose ps -q stele1)" >/dev/null
in_time 'put with one member killed' through 22379 put greeting again
compose up -d --no-build
wait_until_healthy "$(compose ps -q stele1)"
expect 'get through the one that is back' $'greeting\nagain' "$(through 2379 get greeting)"
in_time 'all hold the same' hold_the_same 3

# One loses its data and is replaced.
compose rm --stop --force stele3
docker volume rm "${COMPOSE_PROJECT_NAME}_data3" >/dev/null
in_time 'member remove of one that is gone' through 2379 member remove "$(id_of stele3)"
in_time 'member add in its place' \
    through 2379 member add stele3 --peer-urls http://stele3:2380
ETCD_INITIAL_CLUSTER_STATE=existing compose up -d --no-build --no-deps stele3
wait_until_healthy "$(compose ps -q stele3)"
expect 'get through the new one' $'greeting\nagain' "$(through 32379 get greeting)"
in_time 'all hold the same' hold_the_same 3
expect 'members' 3 "$(through 32379 member list | grep --count ', started, ')"
compose down --volumes
is_up=false
echo "docker: all passed"
