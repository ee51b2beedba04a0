//! How many keys, versions, watchers and leases each mode of the benchmark
//! works with. Names of scenarios are made from these, so that a number is
//! never shown under the name of a larger one.

use crate::options::Mode;

/// How much there is of everything.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Keys that are put and got one by one.
    pub points: usize,
    /// Keys of small lists, and the versions of each beside one.
    pub small: usize,
    pub versions: &'static [usize],
    /// Events to catch up on, and versions to compact, of those.
    pub history: usize,
    /// Keys of large lists.
    pub large: usize,
    pub watchers: &'static [usize],
    pub watched_keys: usize,
    pub leases: usize,
    /// Leases that expire at once.
    pub expiring: usize,
    /// How often the leader of a cluster is killed.
    pub kills: usize,
}

impl Sizes {
    pub fn of(mode: Mode) -> Sizes {
        match mode {
            Mode::Full => Sizes {
                points: 100_000,
                small: 10_000,
                versions: &[30, 300],
                history: 1_000_000,
                large: 1_000_000,
                watchers: &[1, 100, 1000],
                watched_keys: 10_000,
                leases: 100_000,
                expiring: 50_000,
                kills: 15,
            },
            Mode::Quick => Sizes {
                points: 10_000,
                small: 10_000,
                versions: &[30],
                history: 100_000,
                large: 100_000,
                watchers: &[1, 100, 1000],
                watched_keys: 1_000,
                leases: 5_000,
                expiring: 2_000,
                kills: 5,
            },
            Mode::Scale => Sizes {
                large: 10_000_000,
                ..Sizes::of(Mode::Full)
            },
        }
    }
}
