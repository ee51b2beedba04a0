//! One client's gets beside somebody else's heavy load: whether a server lets
//! the light one through.
//!
//! The heavy load runs on a thread and runtime of its own, so that what it
//! does with its answers does not hold up the measuring client. Its rate is
//! reported too: starving it would be no merit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use stele::proto::etcdserverpb::{PutRequest, RangeRequest};
use tokio::task::JoinSet;

use crate::keys::{KeySpace, random_value};
use crate::measure::{Sample, Timing, closed_loop};
use crate::points::{Point, VALUE_BYTES, clients};
use crate::support::client::channel;
use crate::target::{Target, connections};
use crate::wire::Wire;

#[derive(Clone, Copy, Debug)]
pub enum Neighbour {
    /// Lists the whole data set, over and over.
    Lists,
    /// So many clients put.
    Writes { writers: usize },
}

pub async fn run(target: &Target, neighbour: Neighbour, getters: usize, timing: Timing) -> Sample {
    let is_over = Arc::new(AtomicBool::new(false));
    let operations = Arc::new(AtomicU64::new(0));
    let load = Heavy {
        neighbour,
        url: target.server.url(),
        space: target.keys.clone(),
        is_over: Arc::clone(&is_over),
        operations: Arc::clone(&operations),
    };
    let heavy = load.start();
    let get = Point::Get {
        is_serializable: false,
    };
    let began = tokio::time::Instant::now();
    let sample = closed_loop(clients(target, get, getters), timing, target.processes()).await;
    is_over.store(true, Ordering::Relaxed);
    let joined = tokio::task::spawn_blocking(|| heavy.join()).await;
    // With the last one, however long it took.
    let seconds = began.elapsed().as_secs_f64();
    joined
        .expect("waiting does not fail")
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    sample.with(
        "neighbour_per_s",
        operations.load(Ordering::Relaxed) as f64 / seconds,
    )
}

struct Heavy {
    neighbour: Neighbour,
    url: String,
    space: KeySpace,
    is_over: Arc<AtomicBool>,
    operations: Arc<AtomicU64>,
}

impl Heavy {
    fn start(self) -> JoinHandle<()> {
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("the runtime starts");
            runtime.block_on(async {
                match self.neighbour {
                    Neighbour::Lists => self.list().await,
                    Neighbour::Writes { writers } => self.write(writers).await,
                }
            });
        })
    }

    async fn list(&self) {
        let mut wire = Wire::new(channel(&self.url));
        let request = RangeRequest {
            key: self.space.prefix(),
            range_end: self.space.end(),
            ..RangeRequest::default()
        };
        while !self.is_over.load(Ordering::Relaxed) {
            let answer = wire.range(request.clone()).await;
            assert_eq!(answer.kvs.len(), self.space.len(), "keys in a list");
            self.operations.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn write(self, writers: usize) {
        let heavy = Arc::new(self);
        let wires: Vec<Wire> = (0..connections(writers))
            .map(|_| Wire::new(channel(&heavy.url)))
            .collect();
        let mut tasks = JoinSet::new();
        for (number, wire) in wires.iter().cycle().take(writers).enumerate() {
            let mut wire = wire.clone();
            let heavy = Arc::clone(&heavy);
            let mut random = StdRng::seed_from_u64(number as u64);
            tasks.spawn(async move {
                while !heavy.is_over.load(Ordering::Relaxed) {
                    let request = PutRequest {
                        key: heavy.space.random_key(&mut random),
                        value: random_value(&mut random, VALUE_BYTES),
                        ..PutRequest::default()
                    };
                    wire.put(request).await;
                    heavy.operations.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        tasks.join_all().await;
    }
}
