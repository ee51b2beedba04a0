//! The rows of `Meta` that belong to the key space.

use crate::storage::{Batch, Column, Generation, StorageError};

/// Index and term (u64, u64) of the last raft entry in the state.
pub(super) const APPLIED: &[u8] = b"applied";
/// The compacted revision (i64).
pub(super) const COMPACT_SCHEDULED: &[u8] = b"compact/scheduled";
/// The compaction whose removal is done (i64).
pub(super) const COMPACT_FINISHED: &[u8] = b"compact/finished";

/// A row that holds a revision.
pub(super) fn read_revision(
    generation: &Generation,
    name: &[u8],
) -> Result<Option<i64>, StorageError> {
    generation
        .get(Column::Meta, name)?
        .map(|value| parse_revision(name, &value))
        .transpose()
}

pub(super) fn parse_revision(name: &[u8], value: &[u8]) -> Result<i64, StorageError> {
    let value = value
        .try_into()
        .map_err(|_| StorageError::corrupt(Column::Meta, name, "not eight bytes"))?;
    Ok(i64::from_be_bytes(value))
}

pub(super) fn encode_applied(index: u64, term: u64) -> [u8; 16] {
    (u128::from(index) << 64 | u128::from(term)).to_be_bytes()
}

/// Makes a new store count as what the log's first entries have left behind.
pub fn put_applied(batch: &mut Batch, index: u64, term: u64) {
    batch.put(Column::Meta, APPLIED, &encode_applied(index, term));
}

/// (0, 0) on a new store.
pub(super) fn read_applied(generation: &Generation) -> Result<(u64, u64), StorageError> {
    let Some(value) = generation.get(Column::Meta, APPLIED)? else {
        return Ok((0, 0));
    };
    let value = value
        .as_slice()
        .try_into()
        .map_err(|_| StorageError::corrupt(Column::Meta, APPLIED, "not sixteen bytes"))?;
    let applied = u128::from_be_bytes(value);
    Ok(((applied >> 64) as u64, applied as u64))
}
