//! Simulated time, in microseconds since the beginning.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const MILLISECOND: u64 = 1000;
pub const SECOND: u64 = 1000 * MILLISECOND;

/// What time it is. Cheap to clone.
#[derive(Clone)]
pub struct Clock {
    base: Instant,
    now: Arc<AtomicU64>,
}

impl Clock {
    pub fn new() -> Clock {
        Clock {
            base: Instant::now(),
            now: Arc::default(),
        }
    }

    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    pub fn set(&self, now: u64) {
        self.now.store(now, Ordering::Relaxed);
    }

    /// As code wants it that compares instants.
    pub fn instant(&self) -> Instant {
        self.base + Duration::from_micros(self.now())
    }
}
