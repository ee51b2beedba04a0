//! The keys and values that are written and asked for.
//!
//! Keys are numbered and of one length, so that a list of them is in order of
//! their numbers; all keys of a space lie in one buffer, and a request's key
//! is a slice of it. Values are slices of a pool of random bytes: they do not
//! compress, and making one costs nothing.

use std::sync::OnceLock;

use bytes::{BufMut as _, Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

/// Larger than any block or window in which a server looks for repetitions.
const POOL_BYTES: usize = 16 << 20;

/// As in Kubernetes, keys are paths of a few dozen bytes.
const DIGITS: usize = 10;

#[derive(Clone, Debug)]
pub struct KeySpace {
    prefix: &'static str,
    all: Bytes,
    length: usize,
    count: usize,
}

impl KeySpace {
    /// `count` keys below `/registry/<folder>/`.
    pub fn new(prefix: &'static str, count: usize) -> KeySpace {
        let length = prefix.len() + DIGITS;
        let mut all = BytesMut::with_capacity(length * count);
        for number in 0..count {
            all.put_slice(prefix.as_bytes());
            all.put_slice(format!("{number:0DIGITS$}").as_bytes());
        }
        KeySpace {
            prefix,
            all: all.freeze(),
            length,
            count,
        }
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn key(&self, number: usize) -> Bytes {
        let start = number * self.length;
        self.all.slice(start..start + self.length)
    }

    /// The number of a key of this space.
    pub fn number(&self, key: &[u8]) -> usize {
        key.strip_prefix(self.prefix.as_bytes())
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| digits.parse().ok())
            .unwrap_or_else(|| panic!("{key:?} is no key below {}", self.prefix))
    }

    pub fn random_key(&self, random: &mut StdRng) -> Bytes {
        self.key(random.random_range(0..self.count))
    }

    pub fn prefix(&self) -> Bytes {
        Bytes::from_static(self.prefix.as_bytes())
    }

    /// The end of the range of all keys with the prefix.
    pub fn end(&self) -> Bytes {
        let mut end = self.prefix.as_bytes().to_vec();
        let last = end.last_mut().expect("a prefix is not empty");
        // Prefixes end with a slash, never with the highest byte.
        *last += 1;
        end.into()
    }
}

/// `value_bytes` random bytes.
pub fn random_value(random: &mut StdRng, value_bytes: usize) -> Bytes {
    static POOL: OnceLock<Bytes> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let mut pool = vec![0; POOL_BYTES];
        StdRng::seed_from_u64(0).fill_bytes(&mut pool);
        pool.into()
    });
    let start = random.random_range(0..=POOL_BYTES - value_bytes);
    pool.slice(start..start + value_bytes)
}

/// A count as people write it: 500, 10k, 1M.
pub fn short(count: usize) -> String {
    match count {
        count if count >= 1_000_000 && count.is_multiple_of(1_000_000) => {
            format!("{}M", count / 1_000_000)
        }
        count if count >= 1_000 && count.is_multiple_of(1_000) => format!("{}k", count / 1_000),
        count => count.to_string(),
    }
}
