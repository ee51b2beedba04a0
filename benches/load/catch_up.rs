//! A watcher that starts far in the past while writes go on: how fast it gets
//! all that happened since, in order and complete, and what writers notice.
//!
//! An operation is an event of the past; the latencies are those of the puts.

use stele::proto::etcdserverpb::WatchCreateRequest;

use crate::load::BATCH;
use crate::measure::{Running, Sample};
use crate::points::{Point, VALUE_BYTES, clients};
use crate::target::Target;
use crate::wire::put_record;

/// Needs a data set of which the last `events` changes came from
/// [`crate::load`].
pub async fn run(target: &Target, events: usize, writers: usize) -> Sample {
    let last = target.loaded_revision;
    let revisions = i64::try_from(events / BATCH).expect("a count of revisions");
    let first = last - revisions + 1;
    let put = Point::Put {
        value_bytes: VALUE_BYTES,
    };
    let running = Running::begin(clients(target, put, writers));
    let mut wire = target.wire();
    let interval = running.measure(target.processes());
    let all = WatchCreateRequest {
        key: target.keys.prefix(),
        range_end: target.keys.end(),
        start_revision: first,
        ..WatchCreateRequest::default()
    };
    let mut stream = wire.watch(all).await;

    let mut past = 0;
    let mut newest = first;
    // The first event of what is written meanwhile shows that all of the past
    // was there.
    while newest <= last {
        let (_, events) = stream.events().await;
        for event in &events {
            let revision = put_record(event).mod_revision;
            assert!(revision >= newest, "events come in order");
            newest = revision;
            past += usize::from(revision <= last);
        }
    }
    let ended = interval.end();
    assert_eq!(past, events, "events of the past");
    let puts = running.finish().await;
    let seconds = ended.seconds();
    ended
        .sample_of(events as u64, &puts)
        .with("puts_per_s", puts.len() as f64 / seconds)
}
