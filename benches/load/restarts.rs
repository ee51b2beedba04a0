//! How long a server is away: from its start to its first answer, after an
//! orderly stop and after SIGKILL. All keys must be there again.

use std::time::{Duration, Instant};

use stele::proto::etcdserverpb::RangeRequest;
use tokio::time::sleep;

use crate::measure::{Interval, Running, Sample, latencies, record};
use crate::points::{Point, VALUE_BYTES, clients};
use crate::target::{Kind, Target};

#[derive(Clone, Copy, Debug)]
pub enum Stop {
    Clean,
    /// After a second of puts, so that there is something to recover.
    Kill,
}

const PUTS_BEFORE: Duration = Duration::from_secs(1);

pub async fn run(target: &mut Target, stop: Stop, writers: usize) -> Sample {
    match stop {
        Stop::Clean => {
            let status = target.server.terminate().await;
            // etcd ends itself with the signal it was sent.
            let is_orderly = status.success() || target.kind == Kind::Etcd;
            assert!(is_orderly, "{} ended with {status}", target.kind.name());
        }
        Stop::Kill => {
            let put = Point::Put {
                value_bytes: VALUE_BYTES,
            };
            let running = Running::begin(clients(target, put, writers));
            sleep(PUTS_BEFORE).await;
            running.finish().await;
            target.server.kill();
        }
    }
    let began = Instant::now();
    target.server.restart().await;
    let interval = Interval::of_start(target.processes(), began);
    let mut latencies = latencies();
    record(&mut latencies, began.elapsed());
    let sample = interval.end().sample(&latencies);

    let count = RangeRequest {
        key: target.keys.prefix(),
        range_end: target.keys.end(),
        count_only: true,
        ..RangeRequest::default()
    };
    let count = target.wire().range(count).await.count;
    assert_eq!(
        usize::try_from(count),
        Ok(target.keys.len()),
        "keys are lost"
    );
    sample
}
