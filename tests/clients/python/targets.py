"""What gRPC's C core (Python, C++, Ruby, PHP and others) asks of a server under
targets that are more than a host and a port: it sends such a target as the
authority of each call, be it a list of addresses or an escaped path.

STELE_ENDPOINTS names two addresses of the server, with a comma between them,
and STELE_SOCKET its unix socket. Ends with a traceback and status 1 at the first
thing that is not as etcd answers it.
"""

import os
import queue

import grpc
from etcd3 import etcdrpc

# Nothing here waits for anything; a call that is refused says so at once.
TIMEOUT_SECONDS = 10


def put_get_watch(name, target):
    key = f"targets/{name}".encode()
    # A proxy that the environment names is for hosts elsewhere.
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        kv = etcdrpc.KVStub(channel)
        put = kv.Put(etcdrpc.PutRequest(key=key, value=b"1"), timeout=TIMEOUT_SECONDS)
        got = kv.Range(etcdrpc.RangeRequest(key=key), timeout=TIMEOUT_SECONDS)
        assert [each.value for each in got.kvs] == [b"1"], got

        create = etcdrpc.WatchCreateRequest(key=key, start_revision=put.header.revision)
        # The end of the requests would be the end of the watch.
        requests = queue.Queue()
        requests.put(etcdrpc.WatchRequest(create_request=create))
        events = []
        for response in etcdrpc.WatchStub(channel).Watch(iter(requests.get, None), timeout=TIMEOUT_SECONDS):
            events.extend(response.events)
            if events:
                break
        requests.put(None)
        assert [each.kv.value for each in events] == [b"1"], events


def main():
    targets = {
        "two addresses": f"ipv4:{os.environ['STELE_ENDPOINTS']}",
        "a unix socket": f"unix:{os.environ['STELE_SOCKET']}",
    }
    for name, target in targets.items():
        put_get_watch(name, target)
        print("ok", name, flush=True)
    print(f"python grpc: {len(targets)} of {len(targets)} passed")


main()
