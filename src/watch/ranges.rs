//! Which slots watch a key: the index behind every fan-out.
//!
//! Most watchers watch either one key or one prefix, so there are two parts: a
//! hash table for single keys (ten thousand watchers of ten thousand keys cost
//! one probe per event) and [`Spans`] for intervals. The hub has one such
//! index over all watchers, and the catch-up thread builds a small one for
//! each group it reads history for.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::spans::Spans;
use super::watcher::CreateError;
use crate::mvcc::{KeyRange, RangeEnd};

/// The keys a watcher watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WatchRange {
    Single(Bytes),
    /// Keys from `start` to before `end`; `None` means all that follow.
    Span {
        start: Bytes,
        end: Option<Bytes>,
    },
}

impl WatchRange {
    /// Reads the pair of a create request; an empty key stands for the key of
    /// one zero byte (WAT-5, WAT-6).
    pub(super) fn new(key: Bytes, range_end: Bytes) -> Result<WatchRange, CreateError> {
        let start = if key.is_empty() {
            Bytes::from_static(b"\0")
        } else {
            key
        };
        let range = KeyRange::new(&start, &range_end);
        if range.is_empty() {
            return Err(CreateError::EmptyRange);
        }
        let end = match range.end {
            RangeEnd::Single => return Ok(WatchRange::Single(start)),
            // Keep one key where look-ups are cheapest.
            RangeEnd::Before(end) if is_successor(end, &start) => {
                return Ok(WatchRange::Single(start));
            }
            RangeEnd::Before(_) => Some(range_end),
            RangeEnd::Open => None,
        };
        Ok(WatchRange::Span { start, end })
    }
}

/// Is there no key between the two?
fn is_successor(next: &[u8], key: &[u8]) -> bool {
    next.strip_prefix(key).is_some_and(|rest| rest == b"\0")
}

/// An index from key to the slots whose range holds it.
#[derive(Default)]
pub(super) struct Ranges {
    keys: HashMap<Bytes, BTreeSet<u32>>,
    spans: Spans,
}

impl Ranges {
    pub(super) fn insert(&mut self, range: &WatchRange, slot: u32) {
        match range {
            WatchRange::Single(key) => {
                self.keys.entry(key.clone()).or_default().insert(slot);
            }
            WatchRange::Span { start, end } => self.spans.insert(start, end, slot),
        }
    }

    pub(super) fn remove(&mut self, range: &WatchRange, slot: u32) {
        match range {
            WatchRange::Single(key) => {
                if let Some(slots) = self.keys.get_mut(key) {
                    slots.remove(&slot);
                    if slots.is_empty() {
                        self.keys.remove(key);
                    }
                }
            }
            WatchRange::Span { start, end } => self.spans.remove(start, end, slot),
        }
    }

    /// Calls `visit` once for each slot whose range holds `key`.
    pub(super) fn visit(&self, key: &[u8], mut visit: impl FnMut(u32)) {
        if let Some(slots) = self.keys.get(key) {
            slots.iter().for_each(|slot| visit(*slot));
        }
        self.spans.visit(key, &mut visit);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.spans.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(key: &[u8], end: &[u8]) -> Result<WatchRange, CreateError> {
        WatchRange::new(Bytes::copy_from_slice(key), Bytes::copy_from_slice(end))
    }

    fn found(ranges: &Ranges, key: &[u8]) -> Vec<u32> {
        let mut slots = Vec::new();
        ranges.visit(key, |slot| slots.push(slot));
        slots.sort_unstable();
        slots
    }

    /// The rules again, without an index.
    fn holds(range: &WatchRange, key: &[u8]) -> bool {
        match range {
            WatchRange::Single(single) => *single == *key,
            WatchRange::Span { start, end } => {
                *start <= *key && end.as_ref().is_none_or(|end| *key < **end)
            }
        }
    }

    #[test]
    fn reads_the_wire_forms() {
        let single = |key: &'static [u8]| Ok(WatchRange::Single(Bytes::from_static(key)));
        assert_eq!(range(b"", b""), single(b"\0"));
        assert_eq!(range(b"a", b""), single(b"a"));
        assert_eq!(range(b"a", b"a\0"), single(b"a"));
        assert_eq!(
            range(b"", b"\0"),
            Ok(WatchRange::Span {
                start: Bytes::from_static(b"\0"),
                end: None
            })
        );
        assert_eq!(range(b"a", b"a"), Err(CreateError::EmptyRange));
        assert_eq!(range(b"b", b"a"), Err(CreateError::EmptyRange));
        assert_eq!(range(b"", b"\0\0"), single(b"\0"));
    }

    #[test]
    fn ten_thousand_keys_and_one_shared_prefix() {
        let mut ranges = Ranges::default();
        for slot in 0..10_000 {
            ranges.insert(
                &range(format!("k/{slot:05}").as_bytes(), b"").unwrap(),
                slot,
            );
        }
        let prefix = range(b"k/", b"k0").unwrap();
        for slot in 10_000..11_000 {
            ranges.insert(&prefix, slot);
        }
        assert_eq!(found(&ranges, b"k/00042").len(), 1_001);
        assert_eq!(found(&ranges, b"l"), Vec::<u32>::new());
        for slot in 10_000..11_000 {
            ranges.remove(&prefix, slot);
        }
        assert_eq!(found(&ranges, b"k/00042"), vec![42]);
        assert!(ranges.spans.is_empty());
    }

    proptest! {
        /// Random ranges over a small alphabet, added and removed, against
        /// asking every one of them.
        #[test]
        fn agrees_with_brute_force(
            steps in prop::collection::vec(
                (prop::collection::vec(0u8..3, 0..4), prop::collection::vec(0u8..3, 0..4), 0u32..40, any::<bool>()),
                1..200,
            ),
            probes in prop::collection::vec(prop::collection::vec(0u8..3, 1..5), 1..30),
        ) {
            let mut ranges = Ranges::default();
            let mut model: Vec<(u32, WatchRange)> = Vec::new();
            for (key, end, slot, adds) in steps {
                let Ok(range) = range(&key, &end) else { continue };
                if adds && !model.iter().any(|(taken, _)| *taken == slot) {
                    ranges.insert(&range, slot);
                    model.push((slot, range));
                } else if !adds && !model.is_empty() {
                    let (slot, range) = model.swap_remove(slot as usize % model.len());
                    ranges.remove(&range, slot);
                }
                for probe in &probes {
                    let mut expected: Vec<u32> = model
                        .iter()
                        .filter(|(_, range)| holds(range, probe))
                        .map(|(slot, _)| *slot)
                        .collect();
                    expected.sort_unstable();
                    prop_assert_eq!(found(&ranges, probe), expected);
                }
            }
            for (slot, range) in model {
                ranges.remove(&range, slot);
            }
            prop_assert!(ranges.is_empty());
        }
    }
}
