"""A session of the Python client etcd3 against one server.

STELE_ENDPOINT names the server (default 127.0.0.1:2379). Ends with a traceback
and status 1 at the first thing that is not as etcd answers it.
"""

import os
import queue
import threading
import time

import etcd3
from etcd3.exceptions import RevisionCompactedError

STEPS = []


def step(function):
    """Adds a function to those that main calls, in the order of the file."""
    STEPS.append(function)
    return function


@step
def put_get_delete(client):
    first = client.put("kv/a", "1").header.revision
    previous = client.put("kv/a", "2", prev_kv=True)
    assert previous.prev_kv.value == b"1", previous
    assert previous.header.revision == first + 1, previous

    value, metadata = client.get("kv/a")
    assert value == b"2", value
    assert (metadata.create_revision, metadata.mod_revision, metadata.version) == (first, first + 1, 2)
    assert client.get("kv/absent") == (None, None)
    assert not client.put_if_not_exists("kv/a", "3")
    assert client.replace("kv/a", "2", "4")
    assert client.delete("kv/a")
    assert not client.delete("kv/a")


@step
def prefixes(client):
    for name in ["b", "a", "c"]:
        client.put(f"prefix/{name}", name)
    values = [value for value, _ in client.get_prefix("prefix/", sort_order="descend", sort_target="key")]
    assert values == [b"c", b"b", b"a"], values
    created = [value for value, _ in client.get_prefix("prefix/", sort_order="ascend", sort_target="create")]
    assert created == [b"b", b"a", b"c"], created
    keys = [metadata.key for _, metadata in client.get_range("prefix/a", "prefix/c")]
    assert keys == [b"prefix/a", b"prefix/b"], keys
    assert client.delete_prefix("prefix/").deleted == 3


@step
def transaction(client):
    client.put("txn/a", "1")
    succeeded, responses = client.transaction(
        compare=[client.transactions.value("txn/a") == "1", client.transactions.version("txn/a") > 0],
        success=[client.transactions.put("txn/a", "2"), client.transactions.get("txn/a")],
        failure=[client.transactions.delete("txn/a")],
    )
    assert succeeded
    [(value, metadata)] = responses[1]
    assert value == b"2" and metadata.version == 2, responses
    succeeded, _ = client.transaction(
        compare=[client.transactions.create("txn/a") == 0],
        success=[client.transactions.put("txn/a", "3")],
        failure=[client.transactions.delete("txn/a")],
    )
    assert not succeeded
    assert client.get("txn/a") == (None, None)


@step
def watch(client):
    start = client.put("watch/a", "1").header.revision
    events = queue.Queue()
    number = client.add_watch_prefix_callback(
        "watch/", lambda response: [events.put(event) for event in response.events], start_revision=start, prev_kv=True
    )
    client.put("watch/b", "2")
    client.delete("watch/a")
    seen = [events.get(timeout=10) for _ in range(3)]
    assert [type(event).__name__ for event in seen] == ["PutEvent", "PutEvent", "DeleteEvent"], seen
    assert [event.key for event in seen] == [b"watch/a", b"watch/b", b"watch/a"], seen
    assert seen[2].prev_value == b"1", seen[2].prev_value
    client.cancel_watch(number)


@step
def watch_compacted(client):
    for value in "123":
        last = client.put("compact/a", value).header.revision
    client.compact(last, physical=True)
    events, _ = client.watch("compact/a", start_revision=last - 1)
    try:
        next(events)
    except RevisionCompactedError as error:
        assert error.compacted_revision == last, error.compacted_revision
    else:
        raise AssertionError("a watch below the compacted revision went on")


@step
def lease(client):
    lease = client.lease(60)
    client.put("lease/a", "1", lease=lease)
    assert lease.granted_ttl == 60 and 50 < lease.remaining_ttl <= 60
    assert list(lease.keys) == [b"lease/a"], lease.keys
    [renewed] = lease.refresh()
    assert renewed.TTL == 60, renewed
    _, metadata = client.get("lease/a")
    assert metadata.lease_id == lease.id
    lease.revoke()
    assert client.get("lease/a") == (None, None)
    assert client.get_lease_info(lease.id).TTL == -1


@step
def lock(client):
    held = client.lock("lock", ttl=10)
    assert held.acquire(timeout=5)
    assert held.is_acquired()
    other = client.lock("lock", ttl=10)
    assert not other.acquire(timeout=0.5)
    release = threading.Timer(0.3, held.release)
    release.start()
    begun = time.monotonic()
    assert other.acquire(timeout=10)
    assert time.monotonic() - begun < 8, "got the lock by expiry, not by its release"
    release.join()
    assert other.release()


@step
def status(client):
    state = client.status()
    assert state.version.startswith("3."), state.version
    assert state.leader.id == next(iter(client.members)).id
    assert list(client.list_alarms()) == []
    assert client.hash() is not None
    client.defragment()


def main():
    host, port = os.environ.get("STELE_ENDPOINT", "127.0.0.1:2379").rsplit(":", 1)
    # Never closed: the client's watch thread would run into the closed channel, loudly.
    client = etcd3.client(host=host, port=int(port), timeout=10)
    for run in STEPS:
        run(client)
        print("ok", run.__name__, flush=True)
    print(f"python client: {len(STEPS)} of {len(STEPS)} passed")


main()
