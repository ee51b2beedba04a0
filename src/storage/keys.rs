//! How rows are named: the byte layout of every key that is not a plain name.
//!
//! All numbers are big-endian, so that RocksDB's byte order is their order.
//!
//! | row | layout |
//! |---|---|
//! | `Current`, the store's revision | empty (no user key is) |
//! | `Current`, a live key | the user key |
//! | `Log` | main: 8 bytes, sub: 4 bytes |
//! | `Deleted`, by user key | `k`, user key |
//! | `Deleted`, by revision | `r`, main: 8 bytes, sub: 4 bytes |
//!
//! A main revision is never negative and a command has fewer than 2^32
//! changes; both are asserted where a row is named.

use super::{Column, StorageError};

/// The row of `Current` that holds the store's revision. It sorts before every
/// user key, so an iterator over `Current` reads it first and from the same
/// state as the keys that follow.
pub const REVISION: &[u8] = b"";

/// Length of a revision in a key.
pub const REVISION_LEN: usize = 12;

const BY_KEY: u8 = b'k';
const BY_REVISION: u8 = b'r';

/// The first rows by user key, and the first rows by revision.
pub const DELETED_BY_KEY: &[u8] = &[BY_KEY];
pub const DELETED_BY_REVISION: &[u8] = &[BY_REVISION];

/// (main, sub) as twelve bytes: the key of a `Log` row.
pub fn log(main: i64, sub: u32) -> [u8; REVISION_LEN] {
    assert!(main >= 0, "revisions are never negative");
    let mut key = [0; REVISION_LEN];
    key[..8].copy_from_slice(&main.to_be_bytes());
    key[8..].copy_from_slice(&sub.to_be_bytes());
    key
}

/// The reverse of [`log`], also for a revision inside a value. `None` when the
/// bytes are not a revision.
pub fn parse_revision(bytes: &[u8]) -> Option<(i64, u32)> {
    let bytes: &[u8; REVISION_LEN] = bytes.try_into().ok()?;
    let (main, sub) = bytes.split_at(8);
    let main = i64::from_be_bytes(main.try_into().expect("eight of twelve bytes"));
    let sub = u32::from_be_bytes(sub.try_into().expect("four of twelve bytes"));
    (main >= 0).then_some((main, sub))
}

/// The reverse of [`log`] for a key read from the `Log` column.
pub fn parse_log(key: &[u8]) -> Result<(i64, u32), StorageError> {
    parse_revision(key)
        .ok_or_else(|| StorageError::corrupt(Column::Log, key, "the key is not a revision"))
}

/// The `Deleted` row of a user key.
pub fn deleted_by_key(user_key: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + user_key.len());
    key.push(BY_KEY);
    key.extend_from_slice(user_key);
    key
}

/// The user key in a `Deleted` row's key.
pub fn parse_deleted_by_key(key: &[u8]) -> Result<&[u8], StorageError> {
    match key.split_first() {
        Some((&BY_KEY, user_key)) if !user_key.is_empty() => Ok(user_key),
        _ => Err(StorageError::corrupt(
            Column::Deleted,
            key,
            "the key does not name a user key",
        )),
    }
}

/// The `Deleted` row of a deletion.
pub fn deleted_by_revision(main: i64, sub: u32) -> [u8; 1 + REVISION_LEN] {
    let mut key = [BY_REVISION; 1 + REVISION_LEN];
    key[1..].copy_from_slice(&log(main, sub));
    key
}

/// The deletion a `Deleted` row's key stands for.
pub fn parse_deleted_by_revision(key: &[u8]) -> Result<(i64, u32), StorageError> {
    key.strip_prefix(DELETED_BY_REVISION)
        .and_then(parse_revision)
        .ok_or_else(|| {
            StorageError::corrupt(Column::Deleted, key, "the key does not name a deletion")
        })
}

/// The smallest key greater than `key`: its range is then `[key, successor)`.
pub fn successor(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// The end of the range of all keys that begin with `prefix`; `None` when no
/// key is greater than all of them (empty, or only 0xff bytes).
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn revisions_round_trip_and_keep_their_order(a in (0..i64::MAX, any::<u32>()), b in (0..i64::MAX, any::<u32>())) {
            prop_assert_eq!(parse_log(&log(a.0, a.1)).unwrap(), a);
            prop_assert_eq!(log(a.0, a.1).cmp(&log(b.0, b.1)), a.cmp(&b));
            prop_assert_eq!(parse_deleted_by_revision(&deleted_by_revision(a.0, a.1)).unwrap(), a);
        }

        #[test]
        fn user_keys_round_trip_and_keep_their_order(
            a in prop::collection::vec(any::<u8>(), 1..8), b in prop::collection::vec(any::<u8>(), 1..8),
        ) {
            let row = deleted_by_key(&a);
            prop_assert_eq!(parse_deleted_by_key(&row).unwrap(), a.as_slice());
            prop_assert_eq!(deleted_by_key(&a).cmp(&deleted_by_key(&b)), a.cmp(&b));
            prop_assert!(deleted_by_key(&a).as_slice() < DELETED_BY_REVISION);
        }

        #[test]
        fn a_prefix_end_bounds_exactly_the_prefix(
            prefix in prop::collection::vec(any::<u8>(), 0..4), key in prop::collection::vec(any::<u8>(), 0..6),
        ) {
            let inside = key >= prefix && prefix_end(&prefix).is_none_or(|end| key < end);
            prop_assert_eq!(inside, key.starts_with(&prefix));
        }
    }

    #[test]
    fn foreign_keys_are_refused() {
        assert!(parse_log(b"short").is_err());
        assert!(parse_revision(&[0xff; REVISION_LEN]).is_none());
        assert!(parse_deleted_by_key(b"k").is_err());
        assert!(parse_deleted_by_key(b"rx").is_err());
        assert!(parse_deleted_by_revision(b"r").is_err());
    }
}
