#!/usr/bin/env bash
# A session of etcdctl against one server: everything an operator of a single
# member types. Expected output is what etcdctl 3.7 prints against etcd 3.7.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../check.sh"
export ETCDCTL_ENDPOINTS=${STELE_ENDPOINT:-127.0.0.1:2379}
scratch=$(mktemp -d)
watcher=
trap '[[ -z $watcher ]] || kill "$watcher" 2>/dev/null || true; rm -rf "$scratch"' EXIT

# field NAME TEXT: the value of one line of `-w fields` output.
field() { sed -n "s/^\"$1\" : //p" <<<"$2" | tr -d '"' | head -n 1; }
revision() { field Revision "$(etcdctl get absent -w fields)"; }

equals put OK "$(etcdctl put kv/a 1)"
equals 'put --prev-kv' $'OK\nkv/a\n1' "$(etcdctl put kv/a 2 --prev-kv)"
equals get $'kv/a\n2' "$(etcdctl get kv/a)"
etcdctl put kv/b 3 >/dev/null
etcdctl put kv/c 4 >/dev/null
equals 'get --prefix' $'kv/a\n2\nkv/b\n3\nkv/c\n4' "$(etcdctl get --prefix kv/)"
equals 'get --limit' $'kv/c\n4\nkv/b\n3' "$(etcdctl get --prefix kv/ --sort-by KEY --order DESCEND --limit 2)"
equals 'get --keys-only' $'kv/a\n\nkv/b\n\nkv/c' "$(etcdctl get --prefix kv/ --keys-only)"
equals 'get --count-only' '"Count" : 3' "$(etcdctl get --prefix kv/ --count-only -w fields | grep Count)"
equals 'get --from-key' $'kv/b\n3\nkv/c\n4' "$(etcdctl get --from-key kv/b)"
equals 'get --rev' $'kv/a\n1' "$(etcdctl get kv/a --rev 2)"
equals 'get --print-value-only' 2 "$(etcdctl get kv/a --print-value-only)"
equals 'get of an absent key' '' "$(etcdctl get kv/absent)"
equals del $'1\nkv/c\n4' "$(etcdctl del kv/c --prev-kv)"
equals 'del --prefix' 2 "$(etcdctl del --prefix kv/)"
fails_with 'a future revision' 'required revision is a future revision' etcdctl get kv/a --rev 1000000
fails_with 'ignore_value of an absent key' 'etcdserver: key not found' etcdctl put --ignore-value kv/absent
pass 'put, get, del'

etcdctl put txn/a 1 >/dev/null
equals 'txn, compares hold' $'SUCCESS\n\nOK\n\ntxn/a\n2' "$(
    etcdctl txn <<'TXN'
value("txn/a") = "1"
version("txn/a") > "0"

put txn/a 2
get txn/a

del txn/a

TXN
)"
equals 'txn, compares fail' $'FAILURE\n\n1' "$(
    etcdctl txn <<'TXN'
create("txn/a") = "0"

put txn/a 3

del txn/a

TXN
)"
pass txn

start=$(revision)
etcdctl watch --prefix watch/ --prev-kv --rev $((start + 1)) >"$scratch/watch" &
watcher=$!
etcdctl put watch/a 1 >/dev/null
etcdctl put watch/a 2 >/dev/null
etcdctl del watch/a >/dev/null
# A put prints 3 lines (and 2 of a previous pair), a deletion 3 (and 2).
wait_for "$scratch/watch" 13
kill "$watcher"
wait "$watcher" 2>/dev/null || true
watcher=
equals watch $'PUT\nwatch/a\n1\nPUT\nwatch/a\n1\nwatch/a\n2\nDELETE\nwatch/a\n2\nwatch/a' "$(cat "$scratch/watch")"
pass watch

granted=$(etcdctl lease grant 60)
lease=$(sed -n 's/^lease \([0-9a-f]*\) granted with TTL(60s)$/\1/p' <<<"$granted")
contains 'lease grant' "lease $lease granted" "$granted"
etcdctl put lease/a 1 --lease "$lease" >/dev/null
contains 'lease timetolive' "lease $lease granted with TTL(60s), remaining(" "$(etcdctl lease timetolive "$lease" --keys)"
contains 'lease timetolive --keys' 'attached keys([lease/a])' "$(etcdctl lease timetolive "$lease" --keys)"
equals 'lease list' "found 1 leases"$'\n'"$lease" "$(etcdctl lease list)"
equals 'lease keep-alive' "lease $lease keepalived with TTL(60)" "$(etcdctl lease keep-alive --once "$lease")"
equals 'lease revoke' "lease $lease revoked" "$(etcdctl lease revoke "$lease")"
equals 'the key goes with its lease' '' "$(etcdctl get lease/a)"
fails_with 'revoke again' 'requested lease not found' etcdctl lease revoke "$lease"
equals 'timetolive of a revoked lease' "lease $lease already expired" "$(etcdctl lease timetolive "$lease")"
pass lease

etcdctl put compact/a 1 >/dev/null
etcdctl put compact/a 2 >/dev/null
now=$(revision)
equals compaction "compacted revision $now" "$(etcdctl compaction "$now" --physical)"
fails_with 'the same compaction again' 'required revision has been compacted' etcdctl compaction "$now"
fails_with 'get below it' 'required revision has been compacted' etcdctl get compact/a --rev $((now - 1))
fails_with 'watch below it' 'required revision has been compacted' etcdctl watch compact/a --rev $((now - 1))
equals 'get at it' $'compact/a\n2' "$(etcdctl get compact/a --rev "$now")"
pass compaction

endpoint=$ETCDCTL_ENDPOINTS
contains 'endpoint health' "$endpoint is healthy: successfully committed proposal" "$(etcdctl endpoint health 2>&1)"
status=$(etcdctl endpoint status -w fields)
contains 'endpoint status' '"Version" : "3.7.' "$status"
equals 'the leader is the member itself' "$(field MemberID "$status")" "$(field Leader "$status")"
equals 'it is no learner' false "$(field IsLearner "$status")"
contains 'endpoint status as a table' ' 3.7.' "$(etcdctl endpoint status -w table)"
before=$(etcdctl endpoint hashkv)
equals 'endpoint hashkv twice' "$before" "$(etcdctl endpoint hashkv)"
members=$(etcdctl member list)
contains 'member list' ', started, default, ' "$members"
contains 'member list' ", http://$endpoint, false" "$members"
equals 'alarm list' '' "$(etcdctl alarm list)"
equals 'alarm disarm' '' "$(etcdctl alarm disarm)"
contains defrag "Finished defragmenting etcd member[$endpoint]" "$(etcdctl defrag)"
equals 'hashkv after defrag' "$before" "$(etcdctl endpoint hashkv)"
pass 'endpoint, member, alarm, defrag'

echo "etcdctl client: $passed of 6 passed"
