#!/usr/bin/env bash
# A session of grpcurl against one server, with nothing but server reflection to
# learn the API from. (etcd has no reflection: this one runs against stele only.)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../check.sh"
endpoint=${STELE_ENDPOINT:-127.0.0.1:2379}

# call METHOD JSON: prints the response.
call() { grpcurl -plaintext -max-time 10 -d "$2" "$endpoint" "$1"; }
# number FIELD JSON: the value of the first field of that name; int64 is a string in protobuf's JSON.
number() { sed -n "s/^ *\"$1\": \"\{0,1\}\(-\{0,1\}[0-9]*\)\"\{0,1\},\{0,1\}$/\1/p" <<<"$2" | head -n 1; }
base64_of() { printf %s "$1" | base64; }

services=$(grpcurl -plaintext "$endpoint" list)
for service in KV Watch Lease Cluster Maintenance Auth; do
    contains list "etcdserverpb.$service" "$services"
done
equals 'list of a service' \
    $'etcdserverpb.KV.Compact\netcdserverpb.KV.DeleteRange\netcdserverpb.KV.Put\netcdserverpb.KV.Range\netcdserverpb.KV.RangeStream\netcdserverpb.KV.Txn' \
    "$(grpcurl -plaintext "$endpoint" list etcdserverpb.KV)"
pass list

contains 'describe a service' 'rpc Txn ( .etcdserverpb.TxnRequest ) returns ( .etcdserverpb.TxnResponse );' \
    "$(grpcurl -plaintext "$endpoint" describe etcdserverpb.KV)"
contains 'describe a message' 'repeated .mvccpb.KeyValue kvs = 2;' \
    "$(grpcurl -plaintext "$endpoint" describe etcdserverpb.RangeResponse)"
contains 'describe a message' 'repeated .mvccpb.Event events = 11;' \
    "$(grpcurl -plaintext "$endpoint" describe etcdserverpb.WatchResponse)"
pass describe

key=$(base64_of greeting)
response=$(call etcdserverpb.KV/Put "{\"key\": \"$key\", \"value\": \"$(base64_of hello)\"}")
put_revision=$(number revision "$response")
response=$(call etcdserverpb.KV/Range "{\"key\": \"$key\"}")
contains Range "\"value\": \"$(base64_of hello)\"" "$response"
equals 'mod revision' "$put_revision" "$(number modRevision "$response")"
equals count 1 "$(number count "$response")"
pass 'Put and Range'

# Replaces the value if nobody has written the key since it was read.
swap="{
  \"compare\": [{\"key\": \"$key\", \"target\": \"MOD\", \"result\": \"EQUAL\", \"mod_revision\": \"$put_revision\"}],
  \"success\": [{\"request_put\": {\"key\": \"$key\", \"value\": \"$(base64_of swapped)\"}}],
  \"failure\": [{\"request_range\": {\"key\": \"$key\"}}]
}"
response=$(call etcdserverpb.KV/Txn "$swap")
contains 'a swap whose compare holds' '"succeeded": true' "$response"
equals 'revision of the swap' $((put_revision + 1)) "$(number revision "$response")"
response=$(call etcdserverpb.KV/Txn "$swap")
equals 'the same swap again' '' "$(grep succeeded <<<"$response" || true)"
contains 'its other branch' "\"value\": \"$(base64_of swapped)\"" "$response"
pass 'Txn comparing mod_revision'

watched=$(grpcurl -plaintext -max-time 2 -d "{\"create_request\": {\"key\": \"$key\", \"start_revision\": \"$put_revision\", \"prev_kv\": true}}" \
    "$endpoint" etcdserverpb.Watch/Watch 2>&1 || true)
contains 'Watch, created' '"created": true' "$watched"
contains 'Watch, event' '"prevKv":' "$watched"
pass Watch

lease=$(number ID "$(call etcdserverpb.Lease/LeaseGrant '{"TTL": 30}')")
equals 'keep-alive' 30 "$(number TTL "$(call etcdserverpb.Lease/LeaseKeepAlive "{\"ID\": \"$lease\"}")")"
call etcdserverpb.Lease/LeaseRevoke "{\"ID\": \"$lease\"}" >/dev/null
equals 'keep-alive of a revoked lease' '' "$(number TTL "$(call etcdserverpb.Lease/LeaseKeepAlive "{\"ID\": \"$lease\"}")")"
pass Lease

fails_with 'an error: code' 'Code: InvalidArgument' call etcdserverpb.KV/Range '{}'
fails_with 'an error: text' 'Message: etcdserver: key is not provided' call etcdserverpb.KV/Range '{}'
contains Health '"status": "SERVING"' "$(call grpc.health.v1.Health/Check '{}')"
contains Status '"version": "3.7.' "$(call etcdserverpb.Maintenance/Status '{}')"
pass 'errors, health, status'

echo "grpcurl client: $passed of 7 passed"
