//! Ranges of keys: what `key` and `range_end` of a request mean (RNG-2 to
//! RNG-7). The one place for these rules; txn compares, watchers and
//! permissions use them too.

use std::borrow::Cow;

/// The `range_end` that stands for "no end" (RNG-3).
const OPEN_END: &[u8] = b"\0";

/// A set of keys that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRange<'a> {
    pub start: &'a [u8],
    pub end: RangeEnd<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeEnd<'a> {
    /// Just the start key.
    Single,
    /// Keys below this one.
    Before(&'a [u8]),
    /// No end.
    Open,
}

impl<'a> KeyRange<'a> {
    /// The range a request names.
    pub fn new(key: &'a [u8], range_end: &'a [u8]) -> KeyRange<'a> {
        let end = match range_end {
            [] => RangeEnd::Single,
            OPEN_END => RangeEnd::Open,
            end => RangeEnd::Before(end),
        };
        KeyRange { start: key, end }
    }

    /// Every key there can be.
    pub fn all() -> KeyRange<'static> {
        KeyRange {
            start: b"\0",
            end: RangeEnd::Open,
        }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match self.end {
            RangeEnd::Single => key == self.start,
            RangeEnd::Before(end) => self.start <= key && key < end,
            RangeEnd::Open => self.start <= key,
        }
    }

    /// True when no key can lie within (RNG-6).
    pub fn is_empty(&self) -> bool {
        matches!(self.end, RangeEnd::Before(end) if end <= self.start)
    }

    pub fn is_single(&self) -> bool {
        self.end == RangeEnd::Single
    }

    /// The first key beyond the range; `None` when there is none.
    pub fn upper_bound(&self) -> Option<Cow<'a, [u8]>> {
        match self.end {
            RangeEnd::Single => Some(Cow::Owned(crate::storage::keys::successor(self.start))),
            RangeEnd::Before(end) => Some(Cow::Borrowed(end)),
            RangeEnd::Open => None,
        }
    }
}

/// Does the range hold `probe`?
pub fn covers(key: &[u8], range_end: &[u8], probe: &[u8]) -> bool {
    KeyRange::new(key, range_end).contains(probe)
}

/// Can no key lie in the range?
pub fn is_empty(key: &[u8], range_end: &[u8]) -> bool {
    KeyRange::new(key, range_end).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_of_range_end() {
        assert!(covers(b"foo", b"", b"foo") && !covers(b"foo", b"", b"foo\0"));
        assert!(covers(b"foo", b"fop", b"foo/abc") && !covers(b"foo", b"fop", b"fop"));
        assert!(covers(b"foo", b"\0", b"zebra") && !covers(b"foo", b"\0", b"fo"));
        assert!(covers(b"\0", b"\0", b"\0"));
        // RNG-7: longer than the one zero byte, so an ordinary bound.
        assert!(!covers(b"foo", b"\0\0", b"foo") && is_empty(b"foo", b"\0\0"));
    }

    #[test]
    fn a_range_is_empty_when_its_end_is_not_behind_its_start() {
        assert!(is_empty(b"foo", b"foo") && is_empty(b"foo", b"a"));
        assert!(!is_empty(b"foo", b"") && !is_empty(b"foo", b"\0") && !is_empty(b"foo", b"foo\0"));
    }

    #[test]
    fn upper_bounds_agree_with_contains() {
        for (key, range_end) in [("a", ""), ("a", "\0"), ("a", "c"), ("a\u{1}", "")] {
            let range = KeyRange::new(key.as_bytes(), range_end.as_bytes());
            for probe in ["a", "a\0", "a\u{1}", "a\u{1}\0", "b", "c", "d"] {
                let probe = probe.as_bytes();
                let is_below = range.upper_bound().is_none_or(|end| probe < &end[..]);
                assert_eq!(range.contains(probe), probe >= range.start && is_below);
            }
        }
    }
}
