//! A session of the crate etcd-client against one server.
//!
//! `STELE_ENDPOINT` names the server (default 127.0.0.1:2379). Panics at the
//! first thing that is not as etcd answers it.

use std::time::Duration;

use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, DeleteOptions, Error, EventType, GetOptions,
    LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
    TxnOpResponse, WatchFilterType, WatchOptions, WatchStream,
};

/// Longest time the whole program may take.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() {
    let endpoint = std::env::var("STELE_ENDPOINT").unwrap_or_else(|_| "127.0.0.1:2379".to_owned());
    let mut client = Client::connect([endpoint], None).await.expect("connect");
    tokio::time::timeout(PROGRAM_TIMEOUT, run(&mut client))
        .await
        .expect("the program's time is up");
}

async fn run(client: &mut Client) {
    put_get_delete(client).await.expect("put, get, delete");
    txn(client).await.expect("txn");
    watch(client).await.expect("watch");
    compaction(client).await.expect("compaction");
    lease(client).await.expect("lease");
    maintenance(client).await.expect("maintenance");
    println!("rust client: 6 of 6 passed");
}

async fn put_get_delete(client: &mut Client) -> Result<(), Error> {
    let first = client.put("kv/a", "1", None).await?;
    let second = client
        .put("kv/a", "2", Some(PutOptions::new().with_prev_key()))
        .await?;
    assert_eq!(second.prev_key().map(|kv| kv.value()), Some("1".as_bytes()));
    let revision = |response: &etcd_client::PutResponse| response.header().map(|h| h.revision());
    assert_eq!(
        revision(&second),
        revision(&first).map(|revision| revision + 1)
    );

    client.put("kv/c", "4", None).await?;
    client.put("kv/b", "3", None).await?;
    let options = GetOptions::new()
        .with_prefix()
        .with_sort(SortTarget::Key, SortOrder::Descend)
        .with_limit(2);
    let page = client.get("kv/", Some(options)).await?;
    let keys: Vec<&[u8]> = page.kvs().iter().map(|kv| kv.key()).collect();
    assert_eq!(keys, [b"kv/c", b"kv/b"]);
    assert!(page.more());
    assert_eq!(page.count(), 3);
    let old = GetOptions::new().with_revision(revision(&first).unwrap_or_default());
    assert_eq!(client.get("kv/a", Some(old)).await?.kvs()[0].value(), b"1");

    let deleted = client
        .delete(
            "kv/",
            Some(DeleteOptions::new().with_prefix().with_prev_key()),
        )
        .await?;
    assert_eq!(deleted.deleted(), 3);
    assert_eq!(deleted.prev_kvs()[0].version(), 2);
    assert_eq!(client.get("kv/a", None).await?.count(), 0);

    expect_status(
        client.put("", "value", None).await,
        3,
        "etcdserver: key is not provided",
    );
    println!("ok put, get, delete");
    Ok(())
}

async fn txn(client: &mut Client) -> Result<(), Error> {
    let create = |value: &str| {
        Txn::new()
            .when([Compare::create_revision("txn/a", CompareOp::Equal, 0)])
            .and_then([TxnOp::put("txn/a", value, None)])
            .or_else([TxnOp::get("txn/a", None)])
    };
    assert!(client.txn(create("first")).await?.succeeded());
    let again = client.txn(create("second")).await?;
    assert!(!again.succeeded());
    let responses = again.op_responses();
    let [TxnOpResponse::Get(present)] = responses.as_slice() else {
        panic!("not the other branch's answer: {responses:?}");
    };
    assert_eq!(present.kvs()[0].value(), b"first");

    let swap = Txn::new()
        .when([Compare::mod_revision(
            "txn/a",
            CompareOp::Equal,
            present.kvs()[0].mod_revision(),
        )])
        .and_then([
            TxnOp::put("txn/a", "third", None),
            TxnOp::txn(Txn::new().and_then([TxnOp::put("txn/b", "nested", None)])),
            TxnOp::delete("txn/absent", None),
        ]);
    assert!(client.txn(swap).await?.succeeded());
    assert_eq!(client.get("txn/b", None).await?.kvs()[0].value(), b"nested");
    println!("ok txn");
    Ok(())
}

async fn watch(client: &mut Client) -> Result<(), Error> {
    let start = client.put("watch/a", "1", None).await?;
    let revision = start
        .header()
        .map(|header| header.revision())
        .unwrap_or_default();
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(revision)
        .with_prev_key();
    let mut events = client.watch("watch/", Some(options)).await?;
    let deletions = WatchOptions::new().with_filters([WatchFilterType::NoPut]);
    let mut deleted = client.watch("watch/a", Some(deletions)).await?;
    for stream in [&mut events, &mut deleted] {
        let created = stream
            .message()
            .await?
            .expect("an answer to the create request");
        assert!(created.created() && created.watch_id() == 0, "{created:?}");
    }
    client.put("watch/b", "2", None).await?;
    client.delete("watch/a", None).await?;

    let seen = next_events(&mut events, 3).await?;
    let kinds: Vec<EventType> = seen.iter().map(|event| event.event_type()).collect();
    assert_eq!(kinds, [EventType::Put, EventType::Put, EventType::Delete]);
    assert_eq!(seen[2].prev_kv().map(|kv| kv.value()), Some("1".as_bytes()));
    assert_eq!(seen[2].kv().map(|kv| kv.mod_revision()), Some(revision + 2));
    assert_eq!(
        next_events(&mut deleted, 1).await?[0].event_type(),
        EventType::Delete
    );

    events.cancel(0).await?;
    loop {
        let response = events
            .message()
            .await?
            .expect("the stream goes on after a cancel");
        if response.canceled() {
            assert_eq!(response.cancel_reason(), "");
            break;
        }
    }
    println!("ok watch");
    Ok(())
}

/// The next `count` events, however the server spreads them over responses.
async fn next_events(
    stream: &mut WatchStream,
    count: usize,
) -> Result<Vec<etcd_client::Event>, Error> {
    let mut events = Vec::new();
    while events.len() < count {
        let response = stream.message().await?.expect("the stream goes on");
        assert!(!response.canceled(), "{response:?}");
        events.extend_from_slice(response.events());
    }
    Ok(events)
}

async fn compaction(client: &mut Client) -> Result<(), Error> {
    client.put("compact/a", "1", None).await?;
    let last = client.put("compact/a", "2", None).await?;
    let revision = last
        .header()
        .map(|header| header.revision())
        .unwrap_or_default();
    client
        .compact(revision, Some(CompactionOptions::new().with_physical()))
        .await?;
    let below = GetOptions::new().with_revision(revision - 1);
    expect_status(
        client.get("compact/a", Some(below)).await,
        11,
        "etcdserver: mvcc: required revision has been compacted",
    );
    let below = WatchOptions::new().with_start_revision(revision - 1);
    let mut stream = client.watch("compact/a", Some(below)).await?;
    loop {
        let response = stream
            .message()
            .await?
            .expect("an answer to a watch of compacted history");
        if response.canceled() {
            assert_eq!(response.compact_revision(), revision);
            break;
        }
    }
    println!("ok compaction");
    Ok(())
}

async fn lease(client: &mut Client) -> Result<(), Error> {
    let lease = client
        .lease_grant(60, Some(LeaseGrantOptions::new().with_id(4660)))
        .await?;
    assert_eq!((lease.id(), lease.ttl()), (4660, 60));
    client
        .put(
            "lease/a",
            "1",
            Some(PutOptions::new().with_lease(lease.id())),
        )
        .await?;
    let left = client
        .lease_time_to_live(4660, Some(LeaseTimeToLiveOptions::new().with_keys()))
        .await?;
    assert_eq!(left.granted_ttl(), 60);
    assert!(left.ttl() > 50);
    assert_eq!(left.keys(), [b"lease/a".to_vec()]);
    let (mut keeper, mut kept) = client.lease_keep_alive(4660).await?;
    keeper.keep_alive().await?;
    assert_eq!(
        kept.message().await?.map(|response| response.ttl()),
        Some(60)
    );
    client.lease_revoke(4660).await?;
    assert_eq!(client.get("lease/a", None).await?.count(), 0);
    keeper.keep_alive().await?;
    assert_eq!(
        kept.message().await?.map(|response| response.ttl()),
        Some(0)
    );
    expect_status(
        client.lease_revoke(4660).await,
        5,
        "etcdserver: requested lease not found",
    );
    println!("ok lease");
    Ok(())
}

async fn maintenance(client: &mut Client) -> Result<(), Error> {
    let status = client.status().await?;
    assert!(status.version().starts_with("3."), "{status:?}");
    let members = client.member_list().await?;
    assert_eq!(members.members().len(), 1);
    assert_eq!(members.members()[0].id(), status.leader());
    let hash = client.hash_kv(0).await?;
    assert_eq!(client.hash_kv(0).await?.hash(), hash.hash());
    client.defragment().await?;
    println!("ok maintenance");
    Ok(())
}

/// The call must have failed with this gRPC code and text.
fn expect_status<T: std::fmt::Debug>(result: Result<T, Error>, code: i32, message: &str) {
    match result {
        Err(Error::GRpcStatus(status)) => {
            assert_eq!((status.code() as i32, status.message()), (code, message));
        }
        other => panic!("expected the status {code} {message:?}, got {other:?}"),
    }
}
