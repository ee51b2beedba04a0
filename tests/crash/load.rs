//! Clients that write, read and watch until the server goes away.
//!
//! Each writer has one request in flight, so at the end of a round each has at
//! most one in doubt. A writer's own keys are changed by nobody else, which
//! lets it know without asking whether its lease has keys.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use stele::proto::client::etcdserverpb::watch_request::RequestUnion;
use stele::proto::client::etcdserverpb::{
    CompactionRequest, LeaseGrantRequest, LeaseRevokeRequest, RangeRequest, TxnRequest,
    WatchCreateRequest, WatchRequest,
};
use tokio::task::JoinSet;
use tonic::Status;

use crate::history::Observation;
use crate::support::client::Clients;
use crate::support::operation::{Answer, Change, Intent, Operation};
use crate::support::process::Server;
use crate::support::read_back::EVERYTHING;
use crate::support::requests::{delete_request, op, put_if_unchanged, put_request};
use crate::support::settings::random;

const WRITERS: u64 = 16;
const READERS: u64 = 2;
const CONNECTIONS: u64 = 4;

/// Longer than any test: no lease runs out.
const TTL_SECONDS: i64 = 100_000;

/// What the clients of one round know at its end.
#[derive(Default)]
pub struct Log {
    pub operations: Vec<Operation>,
    pub observations: Vec<Observation>,
}

impl Log {
    pub fn acknowledged(&self) -> usize {
        self.operations
            .iter()
            .filter(|operation| operation.answer != Answer::InDoubt)
            .count()
    }

    fn extend(&mut self, other: Log) {
        self.operations.extend(other.operations);
        self.observations.extend(other.observations);
    }
}

/// What the clients of a round are told.
#[derive(Clone, Copy, Debug)]
pub struct Orders {
    pub seed: u64,
    pub round: u64,
    /// Mostly large values, so that the server's log is cut and its tables are
    /// flushed meanwhile.
    pub is_heavy: bool,
    /// Compactions, if wanted, go up to here at most: a revision that has been
    /// checked already.
    pub compact_to: Option<i64>,
}

/// The clients of one round, at work until their server is gone.
pub struct Load {
    tasks: JoinSet<Log>,
}

impl Load {
    pub fn start(server: &Server, orders: Orders) -> Load {
        let Orders {
            seed,
            round,
            is_heavy,
            compact_to,
        } = orders;
        let connections: Vec<Clients> = (0..CONNECTIONS).map(|_| server.clients()).collect();
        let clients = |index: u64| {
            let index = usize::try_from(index % CONNECTIONS).expect("a small number");
            connections[index].clone()
        };
        let random_of = |client: u64| random(seed ^ (round << 20) ^ (client << 8));
        let mut tasks = JoinSet::new();
        for index in 0..WRITERS {
            let writer = Writer {
                clients: clients(index),
                large_values: if is_heavy { 0.3 } else { 0.02 },
                random: random_of(index),
                name: format!("{index}.{round}"),
                own_prefix: format!("own/{index:02}/"),
                written: 0,
                lease: None,
                granted: 0,
                attached: BTreeMap::new(),
                log: Log::default(),
            };
            let first_lease = i64::try_from((round * WRITERS + index) * 1_000).expect("small");
            tasks.spawn(writer.run(first_lease));
        }
        for index in 0..READERS {
            tasks.spawn(read(clients(index), is_heavy));
        }
        tasks.spawn(watch(clients(READERS)));
        if let Some(highest) = compact_to {
            tasks.spawn(compact(clients(0), random_of(WRITERS), highest));
        }
        Load { tasks }
    }

    /// Waits until all clients have noticed that the server is gone.
    pub async fn finish(mut self) -> Log {
        let mut log = Log::default();
        while let Some(result) = self.tasks.join_next().await {
            log.extend(result.expect("a client does not panic"));
        }
        log
    }
}

struct Writer {
    clients: Clients,
    /// The share of values of up to 60 KB.
    large_values: f64,
    random: StdRng,
    name: String,
    own_prefix: String,
    written: u64,
    lease: Option<i64>,
    granted: i64,
    /// The lease of each key of its own that has one.
    attached: BTreeMap<Bytes, i64>,
    log: Log,
}

impl Writer {
    async fn run(mut self, first_lease: i64) -> Log {
        // The first request that fails is in doubt and the last.
        while self.step(first_lease).await.is_ok() {}
        self.log
    }

    async fn step(&mut self, first_lease: i64) -> Result<(), Status> {
        match self.random.random_range(0..100) {
            0..45 => {
                let change = self.put();
                self.write(vec![change]).await
            }
            45..65 => {
                let changes = self.changes();
                self.write(changes).await
            }
            65..78 => {
                let change = self.delete();
                self.write(vec![change]).await
            }
            78..95 => self.increment().await,
            _ => self.change_lease(first_lease).await,
        }
    }

    fn put(&mut self) -> Change {
        let key = match self.random.random_range(0..10) {
            0..7 => format!("{}{:02}", self.own_prefix, self.random.random_range(0..20)),
            _ => format!("shared/{:02}", self.random.random_range(0..30)),
        };
        let is_own = key.starts_with(&self.own_prefix);
        let lease = match self.lease {
            Some(lease) if is_own && self.random.random_bool(0.5) => lease,
            _ => 0,
        };
        Change::Put {
            key: key.into(),
            value: self.value(),
            lease,
        }
    }

    /// No value is written twice, so that each tells which request it is from.
    fn value(&mut self) -> Bytes {
        self.written += 1;
        let length = if self.random.random_bool(self.large_values) {
            60_000
        } else {
            300
        };
        let padding = "~".repeat(self.random.random_range(0..length));
        Bytes::from(format!("{}.{} {padding}", self.name, self.written))
    }

    /// Puts of several keys, and at times a delete of a key of its own that is
    /// not among them.
    fn changes(&mut self) -> Vec<Change> {
        let mut changes = BTreeMap::new();
        for _ in 0..self.random.random_range(2..7) {
            if let Change::Put { key, value, lease } = self.put() {
                changes.insert(key.clone(), Change::Put { key, value, lease });
            }
        }
        let key = Bytes::from(format!(
            "{}{:02}",
            self.own_prefix,
            self.random.random_range(0..20)
        ));
        if self.random.random_bool(0.5) && !changes.contains_key(&key) {
            changes.insert(
                key.clone(),
                Change::Delete {
                    key,
                    end: Bytes::new(),
                },
            );
        }
        let mut changes: Vec<Change> = changes.into_values().collect();
        changes.shuffle(&mut self.random);
        changes
    }

    fn delete(&mut self) -> Change {
        let first = self.random.random_range(0..20);
        let key = Bytes::from(format!("{}{first:02}", self.own_prefix));
        let end = if self.random.random_bool(0.3) {
            Bytes::from(format!("{}{:02}", self.own_prefix, first + 5))
        } else {
            Bytes::new()
        };
        Change::Delete { key, end }
    }

    /// Sends the changes as the plainest request that can carry them.
    async fn write(&mut self, changes: Vec<Change>) -> Result<(), Status> {
        let result = match changes.as_slice() {
            [Change::Put { key, value, lease }] => {
                let reply = self.clients.kv.put(put_request(key, value, *lease)).await;
                reply.map(|reply| reply.into_inner().header.map(|header| header.revision))
            }
            [Change::Delete { key, end }] => {
                let reply = self.clients.kv.delete_range(delete_request(key, end)).await;
                reply.map(|reply| {
                    let reply = reply.into_inner();
                    let revision = reply.header.map(|header| header.revision);
                    revision.filter(|_| reply.deleted > 0)
                })
            }
            changes => {
                let success = changes.iter().map(op).collect();
                let txn = TxnRequest {
                    success,
                    ..TxnRequest::default()
                };
                let reply = self.clients.kv.txn(txn).await;
                reply.map(|reply| reply.into_inner().header.map(|header| header.revision))
            }
        };
        for change in &changes {
            self.track(change);
        }
        self.record(Intent::Write(changes), result)
    }

    /// Keeps in mind which of its keys have a lease.
    fn track(&mut self, change: &Change) {
        match change {
            Change::Put { key, lease, .. } if *lease != 0 => {
                self.attached.insert(key.clone(), *lease);
            }
            Change::Put { key, .. } => {
                self.attached.remove(key);
            }
            Change::Delete { key, end } if end.is_empty() => {
                self.attached.remove(key);
            }
            Change::Delete { key, end } => {
                self.attached
                    .retain(|attached, _| attached < key || attached >= end);
            }
        }
    }

    /// Reads a counter and puts it one higher, if nobody else has meanwhile.
    async fn increment(&mut self) -> Result<(), Status> {
        let key = Bytes::from(format!("counter/{}", self.random.random_range(0..4)));
        let range = RangeRequest {
            key: key.clone(),
            ..RangeRequest::default()
        };
        let reply = self.clients.kv.range(range).await?.into_inner();
        let seen = reply.kvs.first().map_or(0, |kv| kv.mod_revision);
        let value = self.value();
        let txn = put_if_unchanged(&key, seen, &value);
        let intent = Intent::Increment { key, seen, value };
        match self
            .clients
            .kv
            .txn(txn)
            .await
            .map(tonic::Response::into_inner)
        {
            // Somebody else was faster: nothing was asked for.
            Ok(reply) if !reply.succeeded => Ok(()),
            Ok(reply) => self.record(intent, Ok(reply.header.map(|header| header.revision))),
            Err(status) => self.record(intent, Err(status)),
        }
    }

    /// Takes a lease if it has none, else gives it up with all its keys.
    async fn change_lease(&mut self, first_lease: i64) -> Result<(), Status> {
        match self.lease.take() {
            None => {
                self.granted += 1;
                let id = first_lease + self.granted;
                let grant = LeaseGrantRequest {
                    id,
                    ttl: TTL_SECONDS,
                };
                let result = self.clients.lease.lease_grant(grant).await;
                self.record(Intent::Grant { lease: id }, result.map(|_| None))?;
                self.lease = Some(id);
                Ok(())
            }
            Some(id) => {
                let has_keys = self.attached.values().any(|lease| *lease == id);
                let revoke = LeaseRevokeRequest { id };
                let result = self.clients.lease.lease_revoke(revoke).await;
                self.attached.retain(|_, lease| *lease != id);
                let revision = result.map(|reply| {
                    let header = reply.into_inner().header;
                    header.map(|header| header.revision).filter(|_| has_keys)
                });
                self.record(Intent::Revoke { lease: id }, revision)
            }
        }
    }

    /// Notes the request with what is known of it; fails as the request did.
    fn record(
        &mut self,
        intent: Intent,
        result: Result<Option<i64>, Status>,
    ) -> Result<(), Status> {
        let answer = match &result {
            Ok(Some(revision)) => Answer::Revision(*revision),
            Ok(None) => Answer::NoRevision,
            Err(_) => Answer::InDoubt,
        };
        self.log.operations.push(Operation { intent, answer });
        result.map(drop)
    }
}

/// Reads everything again and again, with a pause that leaves the machine to
/// the writers.
async fn read(mut clients: Clients, is_heavy: bool) -> Log {
    let pause = Duration::from_millis(if is_heavy { 100 } else { 20 });
    let mut log = Log::default();
    let everything = RangeRequest {
        key: EVERYTHING,
        range_end: EVERYTHING,
        ..RangeRequest::default()
    };
    while let Ok(reply) = clients.kv.range(everything.clone()).await {
        let reply = reply.into_inner();
        let revision = reply.header.map_or(0, |header| header.revision);
        log.observations.push(Observation::Everything {
            revision,
            kvs: reply.kvs,
        });
        tokio::time::sleep(pause).await;
    }
    log
}

/// Watches everything from now on.
async fn watch(mut clients: Clients) -> Log {
    let create = WatchCreateRequest {
        key: EVERYTHING,
        range_end: EVERYTHING,
        ..WatchCreateRequest::default()
    };
    let request = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    // The sending side stays open: a watch may not depend on its end.
    let (requests, queued) = tokio::sync::mpsc::channel(1);
    requests.send(request).await.expect("the queue is empty");
    let queued = tokio_stream::wrappers::ReceiverStream::new(queued);
    let mut events = Vec::new();
    if let Ok(stream) = clients.watch.watch(queued).await {
        let mut stream = stream.into_inner();
        while let Ok(Some(response)) = stream.message().await {
            events.extend(response.events);
        }
    }
    drop(requests);
    Log {
        observations: vec![Observation::Events(events)],
        ..Log::default()
    }
}

/// Compacts at random revisions. Refusals are expected: the revisions do not
/// come in order.
async fn compact(mut clients: Clients, mut random: StdRng, highest: i64) -> Log {
    const PAUSE_MS: std::ops::Range<u64> = 5..60;
    loop {
        tokio::time::sleep(Duration::from_millis(random.random_range(PAUSE_MS))).await;
        let revision = random.random_range(1..=highest);
        let physical = random.random_bool(0.3);
        let request = CompactionRequest { revision, physical };
        match clients.kv.compact(request).await {
            Ok(_) => {}
            Err(status) if status.code() == tonic::Code::OutOfRange => {}
            Err(_) => return Log::default(),
        }
    }
}
