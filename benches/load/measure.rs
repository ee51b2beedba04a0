//! How a load is timed: closed loops of clients, each with a histogram of its
//! own, and the account of the server's processes around the same interval.
//!
//! A client is one task that sends its next request when the last was
//! answered. Operations are counted when they end inside the interval;
//! latencies are kept in microseconds with three digits.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::usage::{Processes, Usage};

pub type Latencies = Histogram<u32>;

/// No operation takes longer: servers give up before.
const MAX_LATENCY_US: u64 = 600_000_000;

pub fn latencies() -> Latencies {
    Histogram::new_with_bounds(1, MAX_LATENCY_US, 3).expect("the bounds are in order")
}

pub fn record(latencies: &mut Latencies, latency: Duration) {
    let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
    latencies.saturating_record(us);
}

/// How long a closed loop runs, and how much of that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub warm_up: Duration,
    pub measured: Duration,
}

/// One measured interval of one scenario on one server.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample {
    pub operations: u64,
    pub seconds: f64,
    pub operations_per_s: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
    pub cpu_us_per_operation: f64,
    pub write_bytes_per_operation: f64,
    /// Resident at the end of the interval.
    pub rss_bytes: u64,
    /// The most that was resident in the interval.
    pub peak_rss_bytes: u64,
    /// What else a scenario has to say, each number named with its unit.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<&'static str, f64>,
}

impl Sample {
    #[must_use]
    pub fn with(mut self, name: &'static str, value: f64) -> Sample {
        self.extra.insert(name, value);
        self
    }
}

/// An interval that has begun.
pub struct Interval {
    processes: Processes,
    began: Instant,
    usage: Usage,
}

impl Interval {
    pub fn begin(processes: Processes) -> Interval {
        processes.reset_peak();
        Interval {
            usage: processes.usage(),
            processes,
            began: Instant::now(),
        }
    }

    /// For processes that began with the interval.
    pub fn of_start(processes: Processes, began: Instant) -> Interval {
        Interval {
            processes,
            usage: Usage::default(),
            began,
        }
    }

    /// Ends here. The latencies may still be collected: they are given later.
    pub fn end(self) -> Ended {
        Ended {
            elapsed: self.began.elapsed(),
            usage: self.processes.usage() - self.usage,
            rss_bytes: self.processes.rss_bytes(),
            peak_rss_bytes: self.processes.peak_rss_bytes(),
        }
    }
}

/// An interval that is over.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    elapsed: Duration,
    usage: Usage,
    rss_bytes: u64,
    peak_rss_bytes: u64,
}

impl Ended {
    pub fn seconds(&self) -> f64 {
        self.elapsed.as_secs_f64()
    }

    /// The sample when each latency is that of one operation.
    pub fn sample(self, latencies: &Latencies) -> Sample {
        self.sample_of(latencies.len(), latencies)
    }

    /// The sample of an operation count that is not the number of latencies.
    pub fn sample_of(self, operations: u64, latencies: &Latencies) -> Sample {
        assert!(
            operations > 0,
            "no operation ended within {:?}: measure for longer",
            self.elapsed
        );
        let seconds = self.elapsed.as_secs_f64();
        let count = operations as f64;
        Sample {
            operations,
            seconds,
            operations_per_s: count / seconds,
            p50_us: latencies.value_at_quantile(0.5),
            p99_us: latencies.value_at_quantile(0.99),
            p999_us: latencies.value_at_quantile(0.999),
            max_us: latencies.max(),
            cpu_us_per_operation: self.usage.cpu_us as f64 / count,
            write_bytes_per_operation: self.usage.write_bytes as f64 / count,
            rss_bytes: self.rss_bytes,
            peak_rss_bytes: self.peak_rss_bytes,
            extra: BTreeMap::new(),
        }
    }
}

/// One of the clients of a closed loop.
pub trait Client: Send + 'static {
    /// Sends one request, or what counts as one, and checks the answer.
    fn operation(&mut self) -> impl Future<Output = ()> + Send;
}

/// Runs all clients at once for the time given.
pub async fn closed_loop<C: Client>(
    clients: Vec<C>,
    timing: Timing,
    processes: Processes,
) -> Sample {
    let running = Running::begin(clients);
    sleep(timing.warm_up).await;
    let interval = running.measure(processes);
    sleep(timing.measured).await;
    let ended = interval.end();
    ended.sample(&running.finish().await)
}

/// Clients at work, until somebody calls it a day.
pub struct Running {
    phase: Arc<AtomicU8>,
    tasks: JoinSet<Latencies>,
}

/// What operations that end now count for.
const WARM_UP: u8 = 0;
const MEASURED: u8 = 1;
const OVER: u8 = 2;

impl Running {
    pub fn begin<C: Client>(clients: Vec<C>) -> Running {
        let phase = Arc::new(AtomicU8::new(WARM_UP));
        let mut tasks = JoinSet::new();
        for client in clients {
            tasks.spawn(one_loop(client, Arc::clone(&phase)));
        }
        Running { phase, tasks }
    }

    /// From here on operations count.
    pub fn measure(&self, processes: Processes) -> Interval {
        let interval = Interval::begin(processes);
        self.phase.store(MEASURED, Ordering::Relaxed);
        interval
    }

    /// Waits for the operations that are on their way, which no longer count.
    pub async fn finish(self) -> Latencies {
        self.phase.store(OVER, Ordering::Relaxed);
        join(self.tasks).await
    }
}

async fn one_loop<C: Client>(mut client: C, phase: Arc<AtomicU8>) -> Latencies {
    let mut latencies = latencies();
    let mut sent = Instant::now();
    loop {
        client.operation().await;
        // The end of one operation is the beginning of the next.
        let answered = Instant::now();
        match phase.load(Ordering::Relaxed) {
            WARM_UP => {}
            MEASURED => record(&mut latencies, answered - sent),
            _ => return latencies,
        }
        sent = answered;
    }
}

/// Runs one client's operation `count` times, however long that takes.
pub async fn repeat<C: Client>(mut client: C, count: usize, processes: Processes) -> Sample {
    let mut latencies = latencies();
    let interval = Interval::begin(processes);
    for _ in 0..count {
        let sent = Instant::now();
        client.operation().await;
        record(&mut latencies, sent.elapsed());
    }
    interval.end().sample(&latencies)
}

/// Everyone's latencies together. A client that panicked takes the run along.
pub async fn join(mut tasks: JoinSet<Latencies>) -> Latencies {
    let mut all = latencies();
    while let Some(ended) = tasks.join_next().await {
        let one = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        all.add(one).expect("all histograms have the same bounds");
    }
    all
}
