//! The network between members: what is lost, late and out of order.
//!
//! Owns who can reach whom. A message is delivered once or not at all, as the
//! transport promises; two may overtake each other, since heartbeats travel
//! apart from entries and a connection may be replaced by a new one.

use std::collections::BTreeSet;

use rand::Rng as _;
use rand::rngs::StdRng;

use super::clock::MILLISECOND;

pub struct Network {
    /// (from, to)
    blocked: BTreeSet<(u64, u64)>,
    /// Of a thousand messages.
    pub lost_per_mille: u32,
    pub max_delay: u64,
    /// Now and then one is that late.
    pub max_late: u64,
}

impl Network {
    pub fn new() -> Network {
        Network {
            blocked: BTreeSet::new(),
            lost_per_mille: 0,
            max_delay: 5 * MILLISECOND,
            max_late: 5 * MILLISECOND,
        }
    }

    pub fn heal(&mut self) {
        *self = Network::new();
    }

    pub fn unblock(&mut self) {
        self.blocked.clear();
    }

    pub fn block(&mut self, from: u64, to: u64) {
        self.blocked.insert((from, to));
    }

    pub fn reaches(&self, from: u64, to: u64) -> bool {
        !self.blocked.contains(&(from, to))
    }

    /// How long a message takes; `None` when it is lost.
    pub fn send(&self, from: u64, to: u64, rng: &mut StdRng) -> Option<u64> {
        if !self.reaches(from, to) || rng.random_ratio(self.lost_per_mille, 1000) {
            return None;
        }
        let max = if rng.random_ratio(1, 20) {
            self.max_late
        } else {
            self.max_delay
        };
        Some(rng.random_range(200..=max))
    }
}
