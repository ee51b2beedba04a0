//! Keys, values and revisions to choose from: few, so that requests meet.

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::Model;

/// How many keys a wide universe has besides the usual ones: enough for several
/// blocks of a sparse count, and for range streams of many messages.
const WIDE: usize = 900;

/// The keys in use. Most choices fall on the first dozen.
fn universe(is_wide: bool) -> Vec<Bytes> {
    let plain = [
        "a", "b", "c", "a/1", "a/2", "a/3", "b/1", "b/2", "aa", "ab", "d", "e", "k0", "k1", "k2",
        "k3", "k4", "k5", "k6", "k7", "k8", "k9", "z", "zz",
    ];
    let odd: [&[u8]; 9] = [
        b"\0",
        b"\0\0",
        b"\0a",
        b"a\0",
        b"a\xff",
        b"a/\xff\xff",
        b"\xff",
        b"\xff\xff",
        b"\xff\xff\x01",
    ];
    let long = [vec![b'L'; 300], [vec![b'L'; 299], vec![b'M']].concat()];
    let plain = plain
        .into_iter()
        .map(|key| Bytes::from_static(key.as_bytes()));
    let odd = odd.into_iter().map(Bytes::from_static);
    let count = if is_wide { WIDE } else { 0 };
    let wide = (0..count).map(|number| Bytes::from(format!("w/{number:03}")));
    plain
        .chain(odd)
        .chain(long.into_iter().map(Bytes::from))
        .chain(wide)
        .collect()
}

pub struct Keys {
    all: Vec<Bytes>,
    /// Numbers the values that must differ from all others.
    values_made: u64,
}

impl Keys {
    pub fn new(is_wide: bool) -> Keys {
        Keys {
            all: universe(is_wide),
            values_made: 0,
        }
    }

    pub fn all(&self) -> &[Bytes] {
        &self.all
    }

    /// A key that exists or may exist; never empty.
    pub fn some_key(&self, random: &mut StdRng) -> Bytes {
        const COMMON: usize = 12;
        let keys = if random.random_bool(0.6) {
            &self.all[..COMMON]
        } else {
            &self.all
        };
        keys.choose(random)
            .expect("the universe is not empty")
            .clone()
    }

    /// A key for a request: now and then empty, which is refused.
    pub fn key(&self, random: &mut StdRng) -> Bytes {
        if random.random_bool(0.01) {
            Bytes::new()
        } else {
            self.some_key(random)
        }
    }

    /// The end of a range: a single key in half of the cases, else a prefix,
    /// everything from the key on, up to another key (also a smaller one), or
    /// one of the borderline forms (RNG-3 to RNG-7).
    pub fn range_end(&self, random: &mut StdRng, key: &[u8]) -> Bytes {
        match random.random_range(0..100) {
            0..45 => Bytes::new(),
            45..60 => Bytes::from_static(b"\0"),
            60..76 => prefix_end(key),
            76..95 => self.some_key(random),
            95..97 => Bytes::copy_from_slice(key),
            97..99 => Bytes::from([key, b"\0"].concat()),
            _ => Bytes::from_static(b"\0\0"),
        }
    }

    /// The end of a range that holds a few keys.
    pub fn near_end(&self, random: &mut StdRng, key: &Bytes) -> Bytes {
        let index = self.all.iter().position(|other| other == key).unwrap_or(0);
        match self.all.get(index + random.random_range(1..12)) {
            Some(end) if end > key => end.clone(),
            _ => Bytes::from([key, &b"\0"[..]].concat()),
        }
    }

    pub fn value(&mut self, random: &mut StdRng) -> Bytes {
        const SHARED: [&str; 6] = ["1", "2", "3", "x", "y", "\0"];
        match random.random_range(0..100) {
            0..10 => Bytes::new(),
            10..70 => SHARED
                .choose(random)
                .map_or(Bytes::new(), |value| (*value).into()),
            70..96 => {
                self.values_made += 1;
                Bytes::from(format!("value {}", self.values_made))
            }
            _ => Bytes::from(vec![random.random(); random.random_range(100..6_000)]),
        }
    }
}

/// The smallest key after all that begin with `prefix` (RNG-5).
fn prefix_end(prefix: &[u8]) -> Bytes {
    let Some(last) = prefix.iter().rposition(|&byte| byte < 0xff) else {
        return Bytes::from_static(b"\0");
    };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Bytes::from(end)
}

/// A revision to read at: mostly readable, at times compacted, in the future
/// or negative.
pub fn revision(random: &mut StdRng, model: &Model) -> i64 {
    let oldest = model.compacted.max(1);
    match random.random_range(0..100) {
        0..45 => 0,
        45..80 => random.random_range(oldest..=model.revision),
        80..86 => model.revision,
        86..89 => oldest,
        89..92 => oldest - 1,
        92..94 => random.random_range(0..=oldest),
        94..96 => model.revision + 1,
        96 => model.revision + 1_000,
        97 => *[-1, -2, -1_000, i64::MIN]
            .choose(random)
            .expect("not empty"),
        98 => i64::MAX,
        _ => 1,
    }
}

/// A bound for a revision filter or a compare: near what keys have.
pub fn near_revision(random: &mut StdRng, model: &Model) -> i64 {
    match random.random_range(0..10) {
        0 => 0,
        1 => -1,
        2 => model.revision,
        3 => model.revision + 1,
        4..7 => random.random_range(1..=model.revision),
        _ => random.random_range((model.revision - 30).max(1)..=model.revision),
    }
}
