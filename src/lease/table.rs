//! The replicated half of leases: which exist, and which keys hang on them.
//!
//! Owns the `lease/` and `attach/` rows of the meta column and their mirror in
//! memory. It is deterministic: the same commands leave the same rows on every
//! member. It promises that a row and its mirror change together, within the
//! batch of the command being applied. When a lease ends is the lessor's
//! business; deleting the keys of a revoked lease is the machine's.
//!
//! | row | value |
//! |---|---|
//! | `lease/` id (8 bytes, big-endian) | granted TTL in seconds (8 bytes, big-endian); of a lease with a checkpoint then its remaining seconds, term and sequence (8 each) |
//! | `attach/` id (8 bytes, big-endian) key | empty |
//!
//! Attachments have rows of their own, so that opening costs what is attached
//! and not a scan of every key (etcd rebuilds them that way, LEA-10).

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use thiserror::Error;

use crate::storage::{Column, Engine, StorageError};

/// LEA-2: the longest TTL that can be granted, about 285 years.
pub const MAX_TTL_SECONDS: i64 = 9_000_000_000;

const LEASE_PREFIX: &[u8] = b"lease/";
const ATTACH_PREFIX: &[u8] = b"attach/";
const ID_LEN: usize = 8;

/// Takes the table's rows into the batch of the command being applied. The
/// machine implements it for its writer.
pub trait MetaRows {
    /// Stages a row of the meta column.
    fn put_meta(&mut self, key: &[u8], value: &[u8]);
    /// Stages the removal of a row of the meta column.
    fn delete_meta(&mut self, key: &[u8]);
}

/// Why a lease was not granted. The same on every member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum GrantError {
    #[error("lease already exists")]
    Exists,
    #[error("too large lease TTL")]
    TtlTooLarge,
}

/// What the leader of `term` said of a lease's time. Of two, the younger
/// counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// 0: as long as granted.
    pub remaining_seconds: i64,
    pub term: u64,
    pub sequence: u64,
}

/// A lease for those who keep its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseTime {
    pub id: i64,
    /// As granted.
    pub ttl_seconds: i64,
    /// As of the last checkpoint; 0: as long as granted.
    pub remaining_seconds: i64,
}

/// All leases and their keys. Owned by the machine.
///
/// Invariants: a key hangs on at most one lease (LEA-8); every attachment
/// belongs to a lease that exists.
#[derive(Debug, Default)]
pub struct Table {
    leases: HashMap<i64, Lease>,
}

#[derive(Debug)]
struct Lease {
    ttl_seconds: i64,
    checkpoint: Option<Checkpoint>,
    keys: BTreeSet<Bytes>,
}

impl Table {
    /// Reads the table as the last commit left it.
    ///
    /// # Errors
    /// A row that this file cannot have written is reported as corrupt.
    pub fn open(engine: &Engine) -> Result<Table, StorageError> {
        let mut table = Table::default();
        for (row, value) in engine.scan_prefix(Column::Meta, LEASE_PREFIX)? {
            let (id, rest) = split_row(&row, LEASE_PREFIX)?;
            if !rest.is_empty() {
                return Err(corrupt(&row, "bytes after the lease id"));
            }
            let Some((ttl_seconds, checkpoint)) = decode(&value) else {
                return Err(corrupt(&row, "neither a TTL nor one with a checkpoint"));
            };
            let lease = Lease {
                ttl_seconds,
                checkpoint,
                keys: BTreeSet::new(),
            };
            table.leases.insert(id, lease);
        }
        for (row, _) in engine.scan_prefix(Column::Meta, ATTACH_PREFIX)? {
            let (id, key) = split_row(&row, ATTACH_PREFIX)?;
            let lease = table
                .leases
                .get_mut(&id)
                .ok_or_else(|| corrupt(&row, "the lease does not exist"))?;
            lease.keys.insert(Bytes::copy_from_slice(key));
        }
        Ok(table)
    }

    /// Adds a lease. The TTL has been raised to the minimum before it was
    /// proposed (LEA-3): the minimum depends on a member's settings.
    pub fn grant(
        &mut self,
        rows: &mut impl MetaRows,
        id: i64,
        ttl_seconds: i64,
    ) -> Result<(), GrantError> {
        if ttl_seconds > MAX_TTL_SECONDS {
            return Err(GrantError::TtlTooLarge);
        }
        if self.contains(id) {
            return Err(GrantError::Exists);
        }
        rows.put_meta(&lease_row(id), &encode(ttl_seconds, None));
        let lease = Lease {
            ttl_seconds,
            checkpoint: None,
            keys: BTreeSet::new(),
        };
        self.leases.insert(id, lease);
        Ok(())
    }

    /// Remembers how long a lease still lasts. Whether it did: not of a lease
    /// that is gone, and not if a younger checkpoint came first.
    pub fn checkpoint(&mut self, rows: &mut impl MetaRows, id: i64, made: Checkpoint) -> bool {
        let Some(lease) = self.leases.get_mut(&id) else {
            return false;
        };
        let age = |checkpoint: Checkpoint| (checkpoint.term, checkpoint.sequence);
        if lease.checkpoint.is_some_and(|last| age(last) > age(made)) {
            return false;
        }
        lease.checkpoint = Some(made);
        rows.put_meta(&lease_row(id), &encode(lease.ttl_seconds, Some(made)));
        true
    }

    /// Forgets a lease and what hangs on it; the caller deletes the keys.
    /// `None` when there is no such lease.
    pub fn revoke(&mut self, rows: &mut impl MetaRows, id: i64) -> Option<BTreeSet<Bytes>> {
        let lease = self.leases.remove(&id)?;
        rows.delete_meta(&lease_row(id));
        for key in &lease.keys {
            rows.delete_meta(&attach_row(id, key));
        }
        Some(lease.keys)
    }

    /// Whether the lease exists; 0, which stands for no lease, does not.
    pub fn contains(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// Moves a key that was put from `old_lease` to `new_lease`; 0 is none.
    ///
    /// # Panics
    /// When `new_lease` does not exist: the command should have been refused.
    pub fn attach(&mut self, rows: &mut impl MetaRows, key: Bytes, new_lease: i64, old_lease: i64) {
        if new_lease == old_lease {
            return;
        }
        self.detach(rows, &key, old_lease);
        if new_lease != 0 {
            let lease = self.leases.get_mut(&new_lease);
            let lease = lease.expect("a put is refused when its lease does not exist");
            rows.put_meta(&attach_row(new_lease, &key), b"");
            lease.keys.insert(key);
        }
    }

    /// Takes a key off its lease. Nothing happens when it does not hang there
    /// (any more): revoking a lease forgets it before its keys are deleted.
    pub fn detach(&mut self, rows: &mut impl MetaRows, key: &[u8], old_lease: i64) {
        if let Some(lease) = self.leases.get_mut(&old_lease)
            && lease.keys.remove(key)
        {
            rows.delete_meta(&attach_row(old_lease, key));
        }
    }

    /// Every lease, in no order.
    pub fn leases(&self) -> impl Iterator<Item = LeaseTime> + '_ {
        self.leases.iter().map(|(&id, lease)| LeaseTime {
            id,
            ttl_seconds: lease.ttl_seconds,
            remaining_seconds: lease.checkpoint.map_or(0, |last| last.remaining_seconds),
        })
    }
}

/// The value of a lease's row.
fn encode(ttl_seconds: i64, checkpoint: Option<Checkpoint>) -> Vec<u8> {
    let mut value = ttl_seconds.to_be_bytes().to_vec();
    if let Some(checkpoint) = checkpoint {
        value.extend(checkpoint.remaining_seconds.to_be_bytes());
        value.extend(checkpoint.term.to_be_bytes());
        value.extend(checkpoint.sequence.to_be_bytes());
    }
    value
}

fn decode(value: &[u8]) -> Option<(i64, Option<Checkpoint>)> {
    let (words, rest) = value.as_chunks::<8>();
    if !rest.is_empty() {
        return None;
    }
    match *words {
        [ttl] => Some((i64::from_be_bytes(ttl), None)),
        [ttl, remaining, term, sequence] => {
            let checkpoint = Checkpoint {
                remaining_seconds: i64::from_be_bytes(remaining),
                term: u64::from_be_bytes(term),
                sequence: u64::from_be_bytes(sequence),
            };
            Some((i64::from_be_bytes(ttl), Some(checkpoint)))
        }
        _ => None,
    }
}

/// The keys attached to a lease as of the last commit, ascending. For readers
/// on other threads; empty when there is no such lease.
pub fn attached_keys(engine: &Engine, id: i64) -> Result<Vec<Bytes>, StorageError> {
    let prefix = attach_row(id, b"");
    let rows = engine.scan_prefix(Column::Meta, &prefix)?;
    let keys = rows.into_iter();
    Ok(keys
        .map(|(row, _)| Bytes::from(row).slice(prefix.len()..))
        .collect())
}

fn lease_row(id: i64) -> Vec<u8> {
    [LEASE_PREFIX, &id.to_be_bytes()].concat()
}

fn attach_row(id: i64, key: &[u8]) -> Vec<u8> {
    [ATTACH_PREFIX, &id.to_be_bytes(), key].concat()
}

/// Splits a row into the lease's id and what follows it.
fn split_row<'a>(row: &'a [u8], prefix: &[u8]) -> Result<(i64, &'a [u8]), StorageError> {
    let rest = row.strip_prefix(prefix).unwrap_or_default();
    let Some((id, rest)) = rest.split_first_chunk::<ID_LEN>() else {
        return Err(corrupt(row, "too short for a lease id"));
    };
    Ok((i64::from_be_bytes(*id), rest))
}

fn corrupt(row: &[u8], problem: &str) -> StorageError {
    StorageError::corrupt(Column::Meta, row, problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Batch, Settings};

    /// Rows as a batch would leave them, without an engine.
    #[derive(Default)]
    struct Rows(std::collections::BTreeMap<Vec<u8>, Vec<u8>>);

    impl MetaRows for Rows {
        fn put_meta(&mut self, key: &[u8], value: &[u8]) {
            self.0.insert(key.to_vec(), value.to_vec());
        }

        fn delete_meta(&mut self, key: &[u8]) {
            let existed = self.0.remove(key).is_some();
            assert!(existed, "deletes a row that is not there: {key:?}");
        }
    }

    impl Rows {
        fn write(self, engine: &Engine) {
            let mut batch = Batch::new();
            for (key, value) in self.0 {
                batch.put(Column::Meta, &key, &value);
            }
            engine.write(batch).unwrap();
        }
    }

    fn key(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn grant_refuses_a_taken_id_and_an_endless_ttl() {
        let (mut table, mut rows) = (Table::default(), Rows::default());
        assert_eq!(table.grant(&mut rows, 7, 60), Ok(()));
        assert_eq!(table.grant(&mut rows, 7, 60), Err(GrantError::Exists));
        assert_eq!(table.grant(&mut rows, -7, MAX_TTL_SECONDS), Ok(()));
        assert_eq!(
            table.grant(&mut rows, 8, MAX_TTL_SECONDS + 1),
            Err(GrantError::TtlTooLarge)
        );
        assert_eq!(rows.0.len(), 2);
        assert!(table.contains(-7) && !table.contains(8) && !table.contains(0));
    }

    #[test]
    fn an_overtaken_checkpoint_is_void() {
        let (mut table, mut rows) = (Table::default(), Rows::default());
        table.grant(&mut rows, 1, 600).unwrap();
        let mut checkpoint = |remaining_seconds, term, sequence| {
            let made = Checkpoint {
                remaining_seconds,
                term,
                sequence,
            };
            let counts = table.checkpoint(&mut rows, 1, made);
            let remaining = table.leases().next().unwrap().remaining_seconds;
            (counts, remaining)
        };
        assert_eq!(checkpoint(300, 2, 7), (true, 300));
        // A renewal cleared it; what was measured before comes too late.
        assert_eq!(checkpoint(0, 2, 9), (true, 0));
        assert_eq!(checkpoint(250, 2, 8), (false, 0));
        // The count starts anew with each term.
        assert_eq!(checkpoint(200, 3, 1), (true, 200));
        assert_eq!(checkpoint(0, 2, 10), (false, 200));
    }

    #[test]
    fn a_key_hangs_on_its_last_lease_only() {
        let (mut table, mut rows) = (Table::default(), Rows::default());
        table.grant(&mut rows, 1, 60).unwrap();
        table.grant(&mut rows, 2, 60).unwrap();
        table.attach(&mut rows, key("a"), 1, 0);
        table.attach(&mut rows, key("a"), 2, 1);
        table.attach(&mut rows, key("b"), 1, 0);
        table.attach(&mut rows, key("b"), 0, 1);
        assert_eq!(table.revoke(&mut rows, 1), Some(BTreeSet::new()));
        let keys = table.revoke(&mut rows, 2).unwrap();
        assert_eq!(keys.into_iter().collect::<Vec<_>>(), [key("a")]);
        // The machine deletes the key after its lease is forgotten.
        table.detach(&mut rows, b"a", 2);
        assert_eq!(table.revoke(&mut rows, 2), None);
        assert!(rows.0.is_empty(), "rows left: {:?}", rows.0);
    }

    #[test]
    fn reopens_with_leases_and_attachments() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path(), &Settings::default()).unwrap();
        let (mut table, mut rows) = (Table::default(), Rows::default());
        table.grant(&mut rows, 1, 60).unwrap();
        table.grant(&mut rows, -5, 90).unwrap();
        let made = Checkpoint {
            remaining_seconds: 40,
            term: 2,
            sequence: 1,
        };
        assert!(table.checkpoint(&mut rows, -5, made));
        for name in ["b", "a", "\u{0}/\u{ff}"] {
            table.attach(&mut rows, key(name), -5, 0);
        }
        rows.write(&engine);

        let mut reopened = Table::open(&engine).unwrap();
        let mut leases: Vec<_> = reopened.leases().collect();
        leases.sort_unstable();
        let time = |id, ttl_seconds, remaining_seconds| LeaseTime {
            id,
            ttl_seconds,
            remaining_seconds,
        };
        assert_eq!(leases, [time(-5, 90, 40), time(1, 60, 0)]);
        let expected = [key("\u{0}/\u{ff}"), key("a"), key("b")];
        assert_eq!(attached_keys(&engine, -5).unwrap(), expected);
        assert_eq!(attached_keys(&engine, 1).unwrap(), Vec::<Bytes>::new());
        let mut rows = Rows::default();
        for key in &expected {
            rows.put_meta(&attach_row(-5, key), b"");
        }
        rows.put_meta(&lease_row(-5), b"");
        let keys = reopened.revoke(&mut rows, -5).unwrap();
        assert_eq!(keys.into_iter().collect::<Vec<_>>(), expected);
        assert!(rows.0.is_empty());
    }

    #[test]
    fn refuses_rows_it_cannot_have_written() {
        for (row, value) in [
            (b"lease/short".to_vec(), 1_i64.to_be_bytes().to_vec()),
            (lease_row(1), b"60".to_vec()),
            (attach_row(1, b"orphan"), Vec::new()),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let engine = Engine::open(dir.path(), &Settings::default()).unwrap();
            let mut batch = Batch::new();
            batch.put(Column::Meta, &row, &value);
            engine.write(batch).unwrap();
            assert!(Table::open(&engine).is_err(), "{row:?}");
        }
    }
}
