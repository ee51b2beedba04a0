//! Clients that write and read at random members while these fail.
//!
//! Each request is recorded with its times, and what is known of its end. A
//! client waits a limited time only: what has not been answered by then may
//! still happen. One client, the *probe*, sends puts at a fixed pace without
//! waiting for earlier ones, which shows when writes are served again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::task::JoinSet;

use crate::record::{Clock, Operation, Outcome, Read, Request};
use crate::request::{self, Answer};
use crate::support::client::{Clients, channel};
use crate::support::operation::{Change, Intent};
use crate::support::read_back::EVERYTHING;
use crate::support::settings::random;

/// How long a client waits for an answer.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// Shared keys; few, so that clients meet.
const KEYS: usize = 12;

/// Of leases that are kept alive or forgotten. Above etcd's least for the
/// election timeouts used here.
pub const TTL_SECONDS: i64 = 3;

/// How the load is made up.
#[derive(Clone, Copy, Debug)]
pub struct Orders {
    pub seed: u64,
    pub clients: usize,
    /// The mean pause of a client between two requests.
    pub pause: Duration,
    /// The share of requests that only read.
    pub reads: f64,
    /// The share of requests that concern leases.
    pub leases: f64,
    pub compacts: bool,
    /// How long values are at most, about.
    pub value_bytes: usize,
    /// Sends linearizable reads as serializable ones, to test the test.
    pub is_sabotaged: bool,
}

/// What all clients of a trial share.
#[derive(Clone)]
pub struct Shared {
    pub urls: Arc<[String]>,
    pub clock: Clock,
    pub collected: Arc<AtomicI64>,
    pub is_over: Arc<AtomicBool>,
}

pub struct Load {
    tasks: JoinSet<Vec<Operation>>,
    shared: Shared,
}

impl Load {
    pub fn start(shared: Shared, orders: Orders) -> Load {
        let mut tasks = JoinSet::new();
        for number in 0..orders.clients {
            tasks.spawn(Client::new(number, &shared, orders).run());
        }
        tasks.spawn(probe(Client::new(orders.clients, &shared, orders)));
        tasks.spawn(keep_lease(Client::new(orders.clients + 2, &shared, orders)));
        if orders.compacts {
            tasks.spawn(compact(Client::new(orders.clients + 1, &shared, orders)));
        }
        Load { tasks, shared }
    }

    /// Waits for what is under way and returns everything that was asked.
    pub async fn finish(mut self) -> Vec<Operation> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let mut operations = Vec::new();
        while let Some(result) = self.tasks.join_next().await {
            operations.extend(result.expect("a client does not panic"));
        }
        operations
    }
}

struct Client {
    number: usize,
    shared: Shared,
    orders: Orders,
    members: Vec<Clients>,
    random: StdRng,
    written: u64,
    /// The lease that it has, as far as it knows.
    lease: Option<i64>,
    granted: i64,
    operations: Vec<Operation>,
}

impl Client {
    fn new(number: usize, shared: &Shared, orders: Orders) -> Client {
        let seed = orders.seed ^ (u64::try_from(number).expect("few clients") << 32);
        Client {
            number,
            shared: shared.clone(),
            orders,
            members: shared
                .urls
                .iter()
                .map(|url| Clients::new(channel(url)))
                .collect(),
            random: random(seed),
            written: 0,
            lease: None,
            granted: 0,
            operations: Vec::new(),
        }
    }

    async fn run(mut self) -> Vec<Operation> {
        while !self.shared.is_over.load(Ordering::Relaxed) {
            let pause = self.orders.pause.mul_f64(2.0 * self.random.random::<f64>());
            tokio::time::sleep(pause).await;
            if self.random.random_bool(self.orders.reads) {
                let read = self.read();
                self.call(Request::Read(read)).await;
            } else if self.random.random_bool(self.orders.leases) {
                self.use_lease().await;
            } else {
                self.write().await;
            }
        }
        self.operations
    }

    /// Sends the request to some member and records it.
    async fn call(&mut self, request: Request) -> &Outcome {
        let member = self.random.random_range(0..self.members.len());
        let clients = self.members[member].clone();
        let invoked = self.shared.clock.now();
        let mut sent = request.clone();
        if let Request::Read(read) = &mut sent
            && self.orders.is_sabotaged
        {
            read.is_serializable = true;
        }
        let answer = tokio::time::timeout(TIMEOUT, request::send(clients, &sent)).await;
        let operation = Operation {
            client: self.number,
            member,
            outcome: outcome(answer),
            request,
            invoked,
            returned: self.shared.clock.now(),
        };
        self.operations.push(operation);
        &self.operations[self.operations.len() - 1].outcome
    }

    fn key(&mut self) -> Bytes {
        format!("k/{:02}", self.random.random_range(0..KEYS)).into()
    }

    /// No value is written twice, so that each tells which request it is from.
    fn value(&mut self) -> Bytes {
        self.written += 1;
        let length = self.random.random_range(0..self.orders.value_bytes);
        let padding = "~".repeat(length);
        format!("{}.{} {padding}", self.number, self.written).into()
    }

    fn put(&mut self) -> Change {
        Change::Put {
            key: self.key(),
            value: self.value(),
            lease: 0,
        }
    }

    fn read(&mut self) -> Read {
        let (key, end) = if self.random.random_bool(0.7) {
            (self.key(), Bytes::new())
        } else {
            (EVERYTHING, EVERYTHING)
        };
        let newest = self.shared.collected.load(Ordering::Relaxed);
        let is_past = newest > 2 && self.random.random_bool(0.1);
        Read {
            key,
            end,
            revision: if is_past {
                self.random.random_range((newest - 100).max(2)..=newest)
            } else {
                0
            },
            is_serializable: self.random.random_bool(0.4),
        }
    }

    async fn write(&mut self) {
        let intent = match self.random.random_range(0..10) {
            0..4 => Intent::Write(vec![self.put()]),
            4..6 => Intent::Write(vec![Change::Delete {
                key: self.key(),
                end: Bytes::new(),
            }]),
            6..8 => self.txn(),
            _ => return self.increment().await,
        };
        self.call(Request::Write(intent)).await;
    }

    /// Puts of several keys, at times with a delete among them.
    fn txn(&mut self) -> Intent {
        let first = self.random.random_range(0..KEYS);
        let count = self.random.random_range(2..5);
        let deleted = self.random.random_range(1..8);
        let changes = (0..count).map(|index| {
            let key = Bytes::from(format!("k/{:02}", (first + index) % KEYS));
            if index == deleted {
                let end = Bytes::new();
                Change::Delete { key, end }
            } else {
                let (value, lease) = (self.value(), 0);
                Change::Put { key, value, lease }
            }
        });
        Intent::Write(changes.collect())
    }

    /// Reads a key and replaces it, if nobody else has meanwhile.
    async fn increment(&mut self) {
        let key = Bytes::from(format!("n/{}", self.random.random_range(0..3)));
        let read = Read {
            key: key.clone(),
            end: Bytes::new(),
            revision: 0,
            is_serializable: self.random.random_bool(0.5),
        };
        let Outcome::Shown { kvs, .. } = self.call(Request::Read(read)).await else {
            return;
        };
        let seen = kvs.first().map_or(0, |kv| kv.mod_revision);
        let value = self.value();
        let intent = Intent::Increment { key, seen, value };
        self.call(Request::Write(intent)).await;
    }

    /// Takes a lease, or puts with it, renews it, revokes it or forgets it.
    async fn use_lease(&mut self) {
        let Some(lease) = self.lease else {
            return self.take_lease().await;
        };
        match self.random.random_range(0..20) {
            0..8 => self.put_with_lease().await,
            8..17 => self.renew(lease).await,
            17..19 => {
                self.call(Request::Write(Intent::Revoke { lease })).await;
                // A late renewal must not find it.
                self.call(Request::KeepAlive { lease }).await;
                self.lease = None;
            }
            _ => self.lease = None,
        }
    }
}

impl Client {
    async fn take_lease(&mut self) {
        self.granted += 1;
        let owner = i64::try_from(self.number + 1).expect("few clients");
        let lease = owner * 1_000_000 + self.granted;
        let grant = Request::Write(Intent::Grant { lease });
        if let Outcome::Lives { .. } = self.call(grant).await {
            self.lease = Some(lease);
        }
    }

    async fn put_with_lease(&mut self) {
        let Some(lease) = self.lease else { return };
        let put = Change::Put {
            key: format!("l/{}/{}", self.number, self.random.random_range(0..3)).into(),
            value: self.value(),
            lease,
        };
        self.call(Request::Write(Intent::Write(vec![put]))).await;
    }

    async fn renew(&mut self, lease: i64) {
        let renewed = self.call(Request::KeepAlive { lease }).await;
        if matches!(renewed, Outcome::Lives { ttl_seconds: 0 }) {
            self.lease = None;
        }
    }
}

fn outcome(answer: Result<Answer, tokio::time::error::Elapsed>) -> Outcome {
    match answer {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(status)) if request::is_refusal(&status) => Outcome::Refused(status.to_string()),
        Ok(Err(status)) => Outcome::Unknown(status.to_string()),
        Err(_) => Outcome::Unknown("no answer in time".to_owned()),
    }
}

/// Puts at a fixed pace, each to the next member, whatever became of the others.
async fn probe(mut client: Client) -> Vec<Operation> {
    const PERIOD: Duration = Duration::from_millis(25);
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut puts = JoinSet::new();
    let mut operations = Vec::new();
    for member in (0..client.members.len()).cycle() {
        ticks.tick().await;
        if client.shared.is_over.load(Ordering::Relaxed) {
            break;
        }
        let put = Change::Put {
            key: "probe".into(),
            value: client.value(),
            lease: 0,
        };
        let request = Request::Write(Intent::Write(vec![put]));
        let (clients, clock) = (client.members[member].clone(), client.shared.clock);
        let number = client.number;
        puts.spawn(async move {
            let invoked = clock.now();
            let answer = tokio::time::timeout(TIMEOUT, request::send(clients, &request)).await;
            Operation {
                client: number,
                member,
                outcome: outcome(answer),
                request,
                invoked,
                returned: clock.now(),
            }
        });
        while let Some(done) = puts.try_join_next() {
            operations.push(done.expect("a put does not panic"));
        }
    }
    while let Some(done) = puts.join_next().await {
        operations.push(done.expect("a put does not panic"));
    }
    operations
}

/// Holds a lease with a key and renews it well in time, at any member.
async fn keep_lease(mut client: Client) -> Vec<Operation> {
    const PERIOD: Duration = Duration::from_millis(300);
    while !client.shared.is_over.load(Ordering::Relaxed) {
        match client.lease {
            None => {
                client.take_lease().await;
                client.put_with_lease().await;
            }
            Some(lease) => client.renew(lease).await,
        }
        tokio::time::sleep(PERIOD).await;
    }
    client.operations
}

/// Compacts now and then, up to what has been collected at most.
async fn compact(mut client: Client) -> Vec<Operation> {
    while !client.shared.is_over.load(Ordering::Relaxed) {
        let pause = client.random.random_range(50..500);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let newest = client.shared.collected.load(Ordering::Relaxed);
        if newest > 2 {
            // Now and then everything: the newest revision may be a deletion.
            let is_all = client.random.random_bool(0.3);
            let oldest = if is_all {
                newest
            } else {
                (newest - 200).max(2)
            };
            let revision = client.random.random_range(oldest..=newest);
            client.call(Request::Compact { revision }).await;
        }
    }
    client.operations
}
