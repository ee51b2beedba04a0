//! Watches: one put that many must hear of, many watchers of a key each, and
//! one that starts a million events in the past.
//!
//! Every put carries its writer, its number and the moment it was sent. A
//! writer puts again when all who should have heard of the last put have, so
//! that no backlog builds up and each event is accounted for. An operation is
//! an event that has arrived; its latency counts from the put.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use stele::proto::etcdserverpb::{PutRequest, WatchCreateRequest};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::keys::{KeySpace, random_value};
use crate::measure::{Interval, Latencies, Sample, Timing, join, latencies, record};
use crate::points::VALUE_BYTES;
use crate::target::Target;
use crate::wire::{WatchStream, Wire, put_record};

#[derive(Clone, Copy, Debug)]
pub enum Fan {
    /// All watchers watch the prefix of all keys, each on a stream of its own.
    OnePrefix { watchers: usize },
    /// A watcher for each key, [`PER_STREAM`] of them to a stream.
    EachKey,
}

/// As a client library does that gives all its watchers one stream.
const PER_STREAM: usize = 100;

/// Each stands at the front of a value: writer, number, nanoseconds.
const STAMP_BYTES: usize = 4 + 8 + 8;

/// Number of the put that tells a watcher to go home.
const LAST: u64 = u64::MAX;

pub async fn run(target: &Target, fan: Fan, writers: usize, timing: Timing) -> Sample {
    let space = Arc::new(target.keys.clone());
    let load = Arc::new(Load {
        began: Instant::now(),
        phase: AtomicU8::new(WARM_UP),
        writers: (0..writers).map(|_| Hearing::default()).collect(),
        heard_by: match fan {
            Fan::OnePrefix { watchers } => watchers,
            Fan::EachKey => 1,
        },
        fan,
    });
    let mut watchers = JoinSet::new();
    for stream in open(target, fan).await {
        watchers.spawn(stream.listen(Arc::clone(&load), writers));
    }
    let mut writing = JoinSet::new();
    for (number, wire) in target.wires(writers).into_iter().enumerate() {
        let random = StdRng::seed_from_u64(number as u64);
        let writer = Writer {
            wire,
            number,
            space: Arc::clone(&space),
            random,
            load: Arc::clone(&load),
        };
        writing.spawn(writer.write());
    }
    sleep(timing.warm_up).await;
    let interval = Interval::begin(target.processes());
    load.phase.store(MEASURED, Ordering::Relaxed);
    sleep(timing.measured).await;
    let ended = interval.end();
    load.phase.store(OVER, Ordering::Relaxed);
    for puts in writing.join_all().await {
        assert!(puts > 0, "a writer got no put through");
    }
    dismiss(target, fan).await;
    ended.sample(&join(watchers).await)
}

const WARM_UP: u8 = 0;
const MEASURED: u8 = 1;
const OVER: u8 = 2;

/// What writers and watchers share.
struct Load {
    began: Instant,
    phase: AtomicU8,
    writers: Vec<Hearing>,
    /// How many watchers hear of each put.
    heard_by: usize,
    fan: Fan,
}

/// Who has heard of a writer's last put.
#[derive(Default)]
struct Hearing {
    watchers: AtomicUsize,
    all: Notify,
}

struct Writer {
    wire: Wire,
    number: usize,
    space: Arc<KeySpace>,
    random: StdRng,
    load: Arc<Load>,
}

impl Writer {
    /// Returns the number of puts.
    async fn write(mut self) -> u64 {
        let mut number = 0;
        while self.load.phase.load(Ordering::Relaxed) != OVER {
            number += 1;
            let hearing = &self.load.writers[self.number];
            hearing.watchers.store(0, Ordering::Relaxed);
            let stamp = Stamp {
                writer: self.number,
                number,
                sent: self.load.began.elapsed(),
            };
            let request = PutRequest {
                key: self.space.random_key(&mut self.random),
                value: stamp.value(&mut self.random),
                ..PutRequest::default()
            };
            self.wire.put(request).await;
            hearing.all.notified().await;
            let heard = hearing.watchers.load(Ordering::Relaxed);
            assert_eq!(heard, self.load.heard_by, "watchers that heard of a put");
        }
        number
    }
}

/// What a put says about itself.
struct Stamp {
    writer: usize,
    number: u64,
    sent: Duration,
}

impl Stamp {
    fn value(&self, random: &mut StdRng) -> Bytes {
        let mut value = BytesMut::with_capacity(VALUE_BYTES);
        value.put_u32(u32::try_from(self.writer).expect("few writers"));
        value.put_u64(self.number);
        value.put_u64(u64::try_from(self.sent.as_nanos()).expect("a run of days"));
        value.put(random_value(random, VALUE_BYTES - STAMP_BYTES));
        value.freeze()
    }

    fn read(mut value: Bytes) -> Stamp {
        assert_eq!(value.len(), VALUE_BYTES, "the value of an event");
        Stamp {
            writer: value.get_u32() as usize,
            number: value.get_u64(),
            sent: Duration::from_nanos(value.get_u64()),
        }
    }
}

/// A stream with its watchers, all created.
struct Watchers {
    stream: WatchStream,
    /// The key of each watcher; empty when they watch the prefix.
    keys: HashMap<i64, Bytes>,
}

impl Watchers {
    /// Takes events until the last one for each of its watchers.
    async fn listen(mut self, load: Arc<Load>, writers: usize) -> Latencies {
        let mut latencies = latencies();
        let mut last = vec![0; writers];
        let mut left = self.keys.len().max(1);
        while left > 0 {
            let (watch_id, events) = self.stream.events().await;
            let is_measured = load.phase.load(Ordering::Relaxed) == MEASURED;
            for event in events {
                let event = put_record(&event);
                if let Some(key) = self.keys.get(&watch_id) {
                    assert_eq!(event.key, key, "an event of another watcher's key");
                }
                let stamp = Stamp::read(event.value);
                if stamp.number == LAST {
                    left -= 1;
                    continue;
                }
                if is_measured {
                    record(&mut latencies, load.began.elapsed() - stamp.sent);
                }
                if let Fan::OnePrefix { .. } = load.fan {
                    let last = &mut last[stamp.writer];
                    assert_eq!(stamp.number, *last + 1, "every event, once, in order");
                    *last = stamp.number;
                }
                let hearing = &load.writers[stamp.writer];
                let heard = hearing.watchers.fetch_add(1, Ordering::Relaxed) + 1;
                if heard == load.heard_by {
                    hearing.all.notify_one();
                }
            }
        }
        latencies
    }
}

async fn open(target: &Target, fan: Fan) -> Vec<Watchers> {
    let space = &target.keys;
    let create = |key, range_end, watch_id| WatchCreateRequest {
        key,
        range_end,
        watch_id,
        ..WatchCreateRequest::default()
    };
    let mut streams = Vec::new();
    match fan {
        Fan::OnePrefix { watchers } => {
            for mut wire in target.wires(watchers) {
                let watch = create(space.prefix(), space.end(), 0);
                streams.push(open_stream(&mut wire, vec![watch]).await);
            }
        }
        Fan::EachKey => {
            let numbers: Vec<usize> = (0..space.len()).collect();
            let chunks: Vec<&[usize]> = numbers.chunks(PER_STREAM).collect();
            for (mut wire, numbers) in target.wires(chunks.len()).into_iter().zip(chunks) {
                // Numbers from 1 on: 0 asks the server to choose.
                let watches = numbers.iter().zip(1..);
                let watches =
                    watches.map(|(&number, id)| create(space.key(number), Bytes::new(), id));
                streams.push(open_stream(&mut wire, watches.collect()).await);
            }
        }
    }
    streams
}

async fn open_stream(wire: &mut Wire, watches: Vec<WatchCreateRequest>) -> Watchers {
    let numbered = watches.iter().filter(|watch| watch.watch_id != 0);
    let keys = numbered.map(|watch| (watch.watch_id, watch.key.clone()));
    let keys = keys.collect();
    let mut watches = watches.into_iter();
    let first = watches.next().expect("a stream has watchers");
    let mut stream = wire.watch(first).await;
    for watch in watches {
        stream.create(watch).await;
    }
    Watchers { stream, keys }
}

/// Every watcher's last event.
async fn dismiss(target: &Target, fan: Fan) {
    let mut wire = target.wire();
    let mut random = StdRng::seed_from_u64(0);
    let puts = match fan {
        Fan::OnePrefix { .. } => 1,
        Fan::EachKey => target.keys.len(),
    };
    let stamp = Stamp {
        writer: 0,
        number: LAST,
        sent: Duration::ZERO,
    };
    for number in 0..puts {
        let request = PutRequest {
            key: target.keys.key(number),
            value: stamp.value(&mut random),
            ..PutRequest::default()
        };
        wire.put(request).await;
    }
}
