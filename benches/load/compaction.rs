//! What writers notice of a compaction that drops a million versions.

use std::time::{Duration, Instant};

use stele::proto::etcdserverpb::CompactionRequest;
use tokio::time::sleep;

use crate::load::BATCH;
use crate::measure::{Running, Sample, Timing};
use crate::points::{Point, VALUE_BYTES, clients};
use crate::target::Target;

/// Compacts the first `versions` puts of a data set whose every key was put
/// again since, and measures puts until that is done, and for the interval of
/// other scenarios at least. The call answers when what it dropped is gone.
pub async fn run(target: &Target, versions: usize, writers: usize, timing: Timing) -> Sample {
    // Revision 1 is the empty store; each transaction of the load is one more.
    let revision = 1 + i64::try_from(versions / BATCH).expect("a count of revisions");
    assert!(revision < target.loaded_revision, "younger than the load");
    let put = Point::Put {
        value_bytes: VALUE_BYTES,
    };
    let running = Running::begin(clients(target, put, writers));
    sleep(timing.warm_up).await;
    let interval = running.measure(target.processes());
    let began = Instant::now();
    let request = CompactionRequest {
        revision,
        physical: true,
    };
    let answer = target.wire().compact(request).await;
    assert!(answer.header.is_some(), "a compaction is answered");
    let call = began.elapsed();
    sleep(timing.measured.saturating_sub(call)).await;
    let ended = interval.end();
    ended
        .sample(&running.finish().await)
        .with("compaction_ms", as_ms(call))
}

fn as_ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
