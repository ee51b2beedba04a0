//! Leases: granting, keeping alive among many, and many that end at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use stele::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, PutRequest,
    WatchCreateRequest,
};
use stele::proto::mvccpb::Event;
use stele::proto::mvccpb::event::EventType;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use crate::keys::random_value;
use crate::load::{BATCH, all_of};
use crate::measure::{Client, Interval, Sample, Timing, closed_loop, latencies, record};
use crate::points::VALUE_BYTES;
use crate::target::Target;
use crate::wire::{OpenStream, WatchStream, Wire};

#[derive(Clone, Copy, Debug)]
pub enum LeaseWork {
    Grant,
    /// Keep-alives of random ones of so many leases.
    KeepAlive {
        leases: usize,
    },
    /// So many end within the seconds that granting them took. The latency of
    /// each is from its end to the event of its key's deletion.
    Expiry {
        leases: usize,
    },
}

/// Leases that are not meant to end during a run.
const LONG_SECONDS: i64 = 24 * 3600;

/// How many leases show how fast a server grants them.
const PROBE_LEASES: usize = 640;

/// etcd revokes at most 1,000 a second; 50,000 take it a minute.
const EXPIRY_PATIENCE: Duration = Duration::from_secs(300);

const GRANTING_CLIENTS: usize = 64;

pub async fn run(target: &mut Target, work: LeaseWork, clients: usize, timing: Timing) -> Sample {
    match work {
        LeaseWork::Grant => {
            let clients = target.wires(clients).into_iter().map(Granting);
            closed_loop(clients.collect(), timing, target.processes()).await
        }
        LeaseWork::KeepAlive { leases } => keep_alive(target, leases, clients, timing).await,
        LeaseWork::Expiry { leases } => expire(target, leases).await,
    }
}

struct Granting(Wire);

impl Client for Granting {
    async fn operation(&mut self) {
        grant(&mut self.0, LONG_SECONDS).await;
    }
}

async fn grant(wire: &mut Wire, ttl_seconds: i64) -> i64 {
    let request = LeaseGrantRequest {
        ttl: ttl_seconds,
        id: 0,
    };
    let granted = wire.grant(request).await;
    assert!(
        granted.id != 0 && granted.ttl == ttl_seconds && granted.error.is_empty(),
        "a lease is granted: {granted:?}"
    );
    granted.id
}

/// Grants many and returns each with the moment it was asked for.
async fn grant_all(target: &Target, leases: usize, ttl_seconds: i64) -> Vec<(i64, Instant)> {
    let mut tasks = JoinSet::new();
    for (number, mut wire) in target.wires(GRANTING_CLIENTS).into_iter().enumerate() {
        let share = leases / GRANTING_CLIENTS + usize::from(number < leases % GRANTING_CLIENTS);
        tasks.spawn(async move {
            let mut granted = Vec::with_capacity(share);
            for _ in 0..share {
                let asked = Instant::now();
                granted.push((grant(&mut wire, ttl_seconds).await, asked));
            }
            granted
        });
    }
    tasks.join_all().await.concat()
}

async fn keep_alive(target: &mut Target, leases: usize, clients: usize, timing: Timing) -> Sample {
    if target.leases.is_empty() {
        let granted = grant_all(target, leases, LONG_SECONDS).await;
        target.leases = granted.into_iter().map(|(id, _)| id).collect();
    }
    let leases: Arc<[i64]> = target.leases.clone().into();
    let mut keeping = Vec::new();
    for (number, mut wire) in target.wires(clients).into_iter().enumerate() {
        let first = LeaseKeepAliveRequest { id: leases[0] };
        let mut stream = wire.keep_alive(first).await;
        stream.next().await;
        keeping.push(Keeping {
            stream,
            leases: Arc::clone(&leases),
            random: StdRng::seed_from_u64(number as u64),
            stores: target.kind.stores(),
        });
    }
    closed_loop(keeping, timing, target.processes()).await
}

/// One keep-alive stream with one request on its way.
struct Keeping {
    stream: OpenStream<LeaseKeepAliveRequest, LeaseKeepAliveResponse>,
    leases: Arc<[i64]>,
    random: StdRng,
    stores: bool,
}

impl Client for Keeping {
    async fn operation(&mut self) {
        let id = self.leases[self.random.random_range(0..self.leases.len())];
        self.stream.send(LeaseKeepAliveRequest { id }).await;
        let answer = self.stream.next().await;
        let is_kept = !self.stores || answer.ttl == LONG_SECONDS;
        assert!(answer.id == id && is_kept, "lease {id} is kept: {answer:?}");
    }
}

async fn expire(target: &Target, leases: usize) -> Sample {
    assert!(leases.is_multiple_of(BATCH) && leases <= target.keys.len());
    let ttl_seconds = time_to_prepare(target, leases).await;
    let granted = grant_all(target, leases, ttl_seconds).await;
    attach(target, &granted).await;
    let mut deletions = watch_all(target).await;

    let ttl = Duration::from_secs(ttl_seconds.unsigned_abs());
    let first = granted.iter().map(|(_, asked)| *asked + ttl).min();
    let first = first.expect("there are leases");
    assert!(
        first > Instant::now(),
        "granting took longer than the leases live"
    );
    sleep_until(first.into()).await;
    let interval = Interval::begin(target.processes());
    let mut late = latencies();
    let mut ends: HashMap<usize, Instant> = granted
        .iter()
        .enumerate()
        .map(|(number, (_, asked))| (number, *asked + ttl))
        .collect();
    while !ends.is_empty() {
        let deleted = timeout(EXPIRY_PATIENCE, deletions.events()).await;
        let (_, events) = deleted.expect("leases that have ended take their keys along");
        let now = Instant::now();
        for event in events {
            let key = deleted_key(&event);
            let end = ends.remove(&target.keys.number(&key));
            let end = end.expect("a key is deleted once");
            assert!(now >= end, "a lease ended before its time");
            record(&mut late, now - end);
        }
    }
    interval.end().sample(&late)
}

/// Seconds that are enough for this server to grant so many leases and to
/// attach their keys before the first of them ends, on a slow machine too.
async fn time_to_prepare(target: &Target, leases: usize) -> i64 {
    const AT_LEAST_SECONDS: f64 = 5.0;
    let began = Instant::now();
    grant_all(target, PROBE_LEASES, LONG_SECONDS).await;
    let granting = began.elapsed().as_secs_f64() * leases as f64 / PROBE_LEASES as f64;
    (AT_LEAST_SECONDS + 2.0 * granting).ceil() as i64
}

/// A key for each lease, many to a transaction.
async fn attach(target: &Target, granted: &[(i64, Instant)]) {
    let mut wire = target.wire();
    let mut random = StdRng::seed_from_u64(0);
    let numbered: Vec<(usize, i64)> = granted
        .iter()
        .enumerate()
        .map(|(number, (id, _))| (number, *id))
        .collect();
    for batch in numbered.chunks(BATCH) {
        let puts: Vec<PutRequest> = batch
            .iter()
            .map(|&(number, lease)| PutRequest {
                key: target.keys.key(number),
                value: random_value(&mut random, VALUE_BYTES),
                lease,
                ..PutRequest::default()
            })
            .collect();
        let answer = wire.txn(all_of(puts.into_iter())).await;
        assert!(answer.succeeded, "keys are attached to their leases");
    }
}

/// A watch of all keys.
async fn watch_all(target: &Target) -> WatchStream {
    let all = WatchCreateRequest {
        key: target.keys.prefix(),
        range_end: target.keys.end(),
        ..WatchCreateRequest::default()
    };
    target.wire().watch(all).await
}

/// The key in an encoded event that must be a deletion.
fn deleted_key(event: &Bytes) -> Bytes {
    let event = Event::decode(event.clone()).expect("an event decodes");
    assert_eq!(event.r#type(), EventType::Delete, "nothing is put");
    event.kv.expect("an event has a record").key
}
