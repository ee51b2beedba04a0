#!/usr/bin/env bash
# What etcdctl shows of a cluster in its unusual moments: changes of membership
# that are refused, a learner, a member that is removed, a majority that is gone.
# Everything is asked of a named member, and the whole is compared with
# expected.txt, which was recorded from real etcd:
#
#   STELE_RECORD=1 STELE_SERVER=etcd tests/clients/run.sh cluster
#
# The members are started here, from STELE_SERVER. What each server chooses by
# itself is given a name; warnings of the client library are left out, since
# whether it or the server notices first that a time is over is luck.
set -Eeuo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
scratch=$(mktemp -d)
unset ETCDCTL_ENDPOINTS
export LC_ALL=C
declare -A id process
finish() {
    local code=$?
    if ((code != 0)); then
        tail -n 20 "$scratch"/log* >&2 || true
        # The reason last, where it is looked for.
        cat "$scratch/failure" >&2 || true
    fi
    for member in "${!process[@]}"; do
        kill -9 "${process[$member]}" 2>/dev/null || true
        until is_gone "$member" 2>/dev/null; do sleep 0.05; done
    done
    rm -rf "$scratch"
}
trap finish EXIT
trap 'echo "cluster: line $LINENO: failed: $BASH_COMMAND" >>"$scratch/failure"' ERR

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
# Six ports in a row below the range the kernel hands out by itself: of clients, then of peers.
base=0
for _ in {1..50}; do
    base=$((20000 + RANDOM % 1200 * 10))
    for offset in 1 2 3 4 5 6 7 8; do
        is_free $((base + offset)) || continue 2
    done
    break
done
client_port() { echo $((base + $1)); }
peer_url() { echo "http://127.0.0.1:$((base + 4 + $1))"; }

# With patience enough that nobody is elected only because the machine is busy.
start() {
    local member=$1 cluster=$2 state=$3
    local url
    url=http://127.0.0.1:$(client_port "$member")
    "$STELE_SERVER" --name "m$member" --data-dir "$scratch/m$member" \
        --listen-client-urls "$url" --advertise-client-urls "$url" \
        --listen-peer-urls "$(peer_url "$member")" \
        --initial-advertise-peer-urls "$(peer_url "$member")" \
        --initial-cluster "$cluster" --initial-cluster-state "$state" \
        --election-timeout 2500 \
        >>"$scratch/log$member" 2>&1 </dev/null &
    process[$member]=$!
    # The shell need not tell of its end.
    disown
}
at() { etcdctl --endpoints "127.0.0.1:$(client_port "$1")" "${@:2}"; }
# Until a command succeeds, a minute at most.
until_ok() {
    local deadline=$((SECONDS + 60))
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || { echo "cluster: in vain: $*" >>"$scratch/failure" && return 1; }
        sleep 0.2
    done
}
is_gone() { ! kill -0 "${process[$1]}"; }
leader() { at 1 endpoint status --cluster | awk -F ', ' '$9 == "true" { print $2 }'; }

named() {
    local script='' member
    for member in "${!id[@]}"; do
        script+="s/${id[$member]}/<id of m$member>/g;"
    done
    for member in 1 2 3 4; do
        script+="s/127\.0\.0\.1:$(client_port "$member")/<m$member>/g;"
        script+="s#$(peer_url "$member")#<peer url of m$member>#g;"
    done
    script+='s/^lease [0-9a-f]+ granted/lease <id> granted/; s/^[0-9a-f]{10,16}$/<lease>/;'
    # Ids are padded to 16 digits, and some have fewer.
    script+='s/cluster +[0-9a-f]{10,16}/cluster <id>/; s/ in cluster +/ in cluster /; s/^Member +/Member /;'
    script+='s/took:? [^ ]+/took <time>/; s/[ \t]+$//'
    grep -vE '^(\{"level"|\\?$|ETCD_)' | sed -E "$script" || true
}
# What etcdctl says at one member. Of a stream that is refused its library says
# only EOF if the refusal is there before its own first message: who is faster
# is luck, with etcd too, so it is asked again.
said_at() {
    local said
    for _ in {1..20}; do
        said=$(timeout 60 etcdctl --endpoints "127.0.0.1:$(client_port "$1")" "${@:2}" 2>&1 || true)
        [[ $said == *"Error: EOF"* ]] || break
    done
    echo "$said"
}
# One command at one member, and what it says.
at_member() {
    {
        echo "> m$1: ${*:2}"
        said_at "$@"
    } | named
}
list_of() {
    echo "> m$1: member list, by name"
    at "$1" member list | sort -t , -k 3 | named
}
http() {
    # etcd lists its checks in the order of a hash map, which is none.
    echo "> m$1: GET $2"
    curl -s -m 20 -w '\n%{http_code}\n' "http://127.0.0.1:$(client_port "$1")$2" | sort | named
}

refusals() {
    at_member 2 move-leader "${id[3]}"
    at_member 1 move-leader 1234
    at_member 1 move-leader "${id[1]}"
    at_member 2 member remove 1234
    at_member 2 member promote 1234
    at_member 2 member promote "${id[3]}"
    at_member 2 member update 1234 --peer-urls http://127.0.0.1:1
    at_member 2 member add x --peer-urls "$(peer_url 2)"
    at_member 2 member add x --peer-urls 127.0.0.1:1
}
learner() {
    id[4]=$(at 3 member add m4 --learner --peer-urls "$(peer_url 4)" | sed -nE 's/^Member +([0-9a-f]+) added.*/\1/p')
    at_member 2 member add m5 --learner --peer-urls http://127.0.0.1:1
    list_of 2
    at_member 2 member promote "${id[4]}"
    at_member 1 move-leader "${id[4]}"
    start 4 "m4=$(peer_url 4),$cluster" existing
    at_member 2 put a 1
    until_ok at 4 get a --consistency=s
    local command
    for command in 'get a' 'put a 2' 'del a' 'lease grant 60' 'lease list' 'lease timetolive 1234' \
        'lease keep-alive 1234 --once' 'compact 1' 'member list' 'alarm list' 'endpoint health' \
        'endpoint hashkv' 'defrag' 'watch a --rev=1' "member promote ${id[4]}" \
        "move-leader ${id[4]}"; do
        # shellcheck disable=SC2086
        at_member 4 $command
    done
    until_ok at 2 member promote "${id[4]}"
    at_member 2 member promote "${id[4]}"
    until_ok at 4 get a
    at_member 4 get a
}
removal() {
    at_member 3 member remove "${id[4]}"
    until_ok is_gone 4
    at_member 2 member remove "${id[4]}"
    start 4 "m4=$(peer_url 4),$cluster" existing
    until_ok is_gone 4
    list_of 2
}
without_majority() {
    at_member 2 lease grant 600
    kill -9 "${process[1]}" "${process[3]}"
    # Until the member that is left has noticed.
    until_ok bash -c "etcdctl --endpoints 127.0.0.1:$(client_port 2) endpoint status | grep 'no leader'"
    local command
    for command in 'get a' 'get a --consistency=s' 'put a 2' 'endpoint health' 'member list' \
        'member add q --peer-urls http://127.0.0.1:1' 'lease timetolive 1234' \
        'lease keep-alive 1234 --once' 'lease list' 'alarm list' 'compact 1' \
        "move-leader ${id[3]}" 'defrag' 'endpoint hashkv'; do
        # shellcheck disable=SC2086
        at_member 2 $command
    done
    local path
    for path in /health '/health?serializable=true' /readyz /livez; do http 2 "$path"; done
}

cluster=m1=$(peer_url 1),m2=$(peer_url 2),m3=$(peer_url 3)
for member in 1 2 3; do start "$member" "$cluster" new; done
for member in 1 2 3; do
    until_ok at "$member" endpoint health
    id[$member]=$(at "$member" member list | awk -F ', ' -v name="m$member" '$3 == name { print $1 }')
done
# Members are added only when all have been connected for a while: five seconds in etcd.
sleep 6
leads_first() {
    local now
    now=$(leader)
    [[ $now == "${id[1]}" ]] && return
    for member in 2 3; do
        [[ $now == "${id[$member]}" ]] && at "$member" move-leader "${id[1]}"
    done
    return 1
}
until_ok leads_first
{
    refusals
    learner
    removal
    without_majority
} >"$scratch/shown"
if [[ ${STELE_RECORD:-} == 1 ]]; then
    cp "$scratch/shown" "$here/expected.txt"
    echo "cluster: recorded"
    exit
fi
diff --unified=5 "$here/expected.txt" "$scratch/shown" >>"$scratch/failure"
echo "cluster: $(grep -c '^> ' "$scratch/shown") answers as etcd gives them"
