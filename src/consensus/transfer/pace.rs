//! How fast the state may leave: a limit in bytes per second that all transfers
//! share.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

pub(super) struct Pace {
    bytes_per_second: u64,
    /// When the line is free again.
    free_at: Mutex<Instant>,
}

impl Pace {
    /// What is not used is not saved up, but for this much: a task that wakes a
    /// little late makes up for it.
    const SLACK: Duration = Duration::from_millis(20);

    pub(super) fn new(bytes_per_second: u64) -> Pace {
        Pace {
            bytes_per_second: bytes_per_second.max(1),
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// Waits for the turn of so many bytes.
    pub(super) async fn wait(&self, bytes: usize) {
        tokio::time::sleep_until(self.book(bytes, Instant::now())).await;
    }

    /// When so many bytes may leave; from then on the line is theirs.
    fn book(&self, bytes: usize, now: Instant) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let earliest = now.checked_sub(Pace::SLACK);
        let mut free_at = self.free_at.lock();
        let start = earliest.map_or(*free_at, |earliest| earliest.max(*free_at));
        *free_at = start + takes;
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_share_the_limit() {
        let pace = Pace::new(1 << 20);
        let start = Instant::now();
        for n in 0..80_u32 {
            let at = pace.book(128 << 10, start);
            let expected = start + Duration::from_millis(125) * n;
            let early = expected.duration_since(at);
            assert!(early <= Pace::SLACK, "{early:?}");
            assert!(at <= expected);
        }
        // A pause is no credit.
        let later = start + Duration::from_secs(60);
        let first = pace.book(1 << 20, later);
        let second = pace.book(1 << 20, later);
        assert_eq!(second - first, Duration::from_secs(1));
        assert!(later - first <= Pace::SLACK);
    }
}
