//! Numbers that a developer sets from outside, and random numbers from a seed.

use std::fmt::Display;
use std::str::FromStr;

use rand::SeedableRng;
use rand::rngs::StdRng;

/// The environment variable `name`, or `default` when it is not set. A value
/// that does not parse stops the test: a typing error must not run the default.
pub fn setting<T: FromStr + Display>(name: &str, default: T) -> T {
    let Ok(text) = std::env::var(name) else {
        return default;
    };
    text.replace('_', "")
        .parse()
        .unwrap_or_else(|_| panic!("{name}={text} does not parse"))
}

/// Whether the environment variable `name` is set to something but 0.
pub fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|text| !text.is_empty() && text != "0")
}

/// A seed for this run: from `name` if set (to replay), else from the clock.
pub fn seed(name: &str) -> u64 {
    let nanoseconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    // Six digits are enough to differ and short enough to type.
    let fresh = u64::try_from(nanoseconds / 1000 % 1_000_000).expect("below a million");
    setting(name, fresh)
}

pub fn random(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}
