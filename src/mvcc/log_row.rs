//! Rows of the log: what changed at a revision, and what it replaced.
//!
//! A row holds the change as the encoded `mvccpb.Event` a watcher is sent, so
//! that catching up copies bytes, and a pointer to what the key was before, so
//! that a read at an older revision can walk back from the present.
//!
//! | bytes | content |
//! |---|---|
//! | 1 | bits 0-1 kind of predecessor, bit 2 tombstone, bit 3 creation |
//! | 4 | length of the event without `prev_kv` (u32, big-endian) |
//! | 0, 4 or 12 | none; inline: its sub (u32); elsewhere: its revision |
//! | rest | the event: type, `kv`, and last `prev_kv` where there is one |
//!
//! *Inline* means that the predecessor is the event's `prev_kv`: no second row
//! is needed, neither by a read nor by a watch, and so rows below the compacted
//! revision are never needed at all. The predecessor differs from `prev_kv`
//! only when a transaction changes a key twice (TXN-23, TXN-24): `prev_kv` is
//! the pair before the transaction (WAT-19), the predecessor is the earlier
//! change, which stands in another row of the same revision.

use super::record::{self, Fields};
use super::revision::Revision;
use crate::storage::{Column, StorageError};
use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};

/// What a key was before a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Predecessor<'a> {
    /// Nothing that is still known.
    None,
    /// Deleted at this revision.
    Tombstone(Revision),
    /// Put, in another row of the same revision.
    Put(Revision),
    /// Put, with this sub-revision and record.
    Inline { sub: u32, record: &'a [u8] },
}

/// A parsed row; all slices lie within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogRow<'a> {
    pub(super) predecessor: Predecessor<'a>,
    pub(super) event: &'a [u8],
    pub(super) without_prev_len: usize,
    /// The event's `kv`.
    pub(super) record: &'a [u8],
    /// The event's `prev_kv`.
    pub(super) prev: Option<&'a [u8]>,
    pub(super) is_tombstone: bool,
    pub(super) is_create: bool,
}

const KIND_NONE: u8 = 0;
const KIND_TOMBSTONE: u8 = 1;
const KIND_PUT: u8 = 2;
const KIND_INLINE: u8 = 3;
const KIND_MASK: u8 = 3;
const IS_TOMBSTONE: u8 = 1 << 2;
const IS_CREATE: u8 = 1 << 3;

const HEADER_LEN: usize = 5;

/// Field `type` with value DELETE; a put leaves the field out.
const TYPE_DELETE: &[u8] = &[0x08, 0x01];
const KV_FIELD: u8 = 0x12;
const PREV_KV_FIELD: u8 = 0x1a;

/// Encodes a row. `record` must be sound; `prev` is the event's `prev_kv`, and
/// an inline predecessor's record must be the same.
pub(super) fn encode(record: &[u8], predecessor: Predecessor<'_>, prev: Option<&[u8]>) -> Bytes {
    let fields = Fields::parse(record).expect("only sound records are logged");
    if let Predecessor::Inline { record, .. } = predecessor {
        assert_eq!(
            Some(record),
            prev,
            "an inline predecessor is the event's prev_kv"
        );
    }
    let (is_tombstone, is_create) = (fields.is_tombstone(), fields.is_create());
    let type_len = if is_tombstone { TYPE_DELETE.len() } else { 0 };
    let without_prev_len = type_len + field_len(record);
    let event_len = without_prev_len + prev.map_or(0, field_len);

    let mut row = BytesMut::with_capacity(HEADER_LEN + super::revision::ENCODED_LEN + event_len);
    let kind = match predecessor {
        Predecessor::None => KIND_NONE,
        Predecessor::Tombstone(_) => KIND_TOMBSTONE,
        Predecessor::Put(_) => KIND_PUT,
        Predecessor::Inline { .. } => KIND_INLINE,
    };
    let tombstone_bit = if is_tombstone { IS_TOMBSTONE } else { 0 };
    let create_bit = if is_create { IS_CREATE } else { 0 };
    row.put_u8(kind | tombstone_bit | create_bit);
    row.put_u32(u32::try_from(without_prev_len).expect("a command is smaller than 4 GiB"));
    match predecessor {
        Predecessor::None => {}
        Predecessor::Tombstone(revision) | Predecessor::Put(revision) => {
            row.put_slice(&revision.to_bytes());
        }
        Predecessor::Inline { sub, .. } => row.put_u32(sub),
    }
    if is_tombstone {
        row.put_slice(TYPE_DELETE);
    }
    put_field(&mut row, KV_FIELD, record);
    if let Some(prev) = prev {
        put_field(&mut row, PREV_KV_FIELD, prev);
    }
    row.freeze()
}

fn field_len(bytes: &[u8]) -> usize {
    1 + encoded_len_varint(bytes.len() as u64) + bytes.len()
}

fn put_field(row: &mut BytesMut, tag: u8, bytes: &[u8]) {
    row.put_u8(tag);
    encode_varint(bytes.len() as u64, row);
    row.put_slice(bytes);
}

impl<'a> LogRow<'a> {
    /// Reads the row stored at `revision`.
    pub(super) fn parse(revision: Revision, row: &'a [u8]) -> Result<LogRow<'a>, StorageError> {
        let corrupt = |problem| StorageError::corrupt(Column::Log, &revision.to_bytes(), problem);
        let parsed = LogRow::split(row).ok_or_else(|| corrupt("the row is malformed"))?;
        let fields = record::parse_in(Column::Log, &revision.to_bytes(), parsed.record)?;
        if fields.mod_revision != revision.main
            || fields.is_tombstone() != parsed.is_tombstone
            || fields.is_create() != parsed.is_create
        {
            return Err(corrupt("the row contradicts its record"));
        }
        Ok(parsed)
    }

    fn split(row: &'a [u8]) -> Option<LogRow<'a>> {
        let (&flags, rest) = row.split_first()?;
        let (len, mut rest) = rest.split_first_chunk::<4>()?;
        let without_prev_len = u32::from_be_bytes(*len) as usize;
        let mut revision = Revision::new(0, 0);
        let mut inline_sub = 0;
        match flags & KIND_MASK {
            KIND_TOMBSTONE | KIND_PUT => {
                let (bytes, after) = rest.split_at_checked(super::revision::ENCODED_LEN)?;
                (revision, rest) = (Revision::from_bytes(bytes)?, after);
            }
            KIND_INLINE => {
                let (sub, after) = rest.split_first_chunk::<4>()?;
                (inline_sub, rest) = (u32::from_be_bytes(*sub), after);
            }
            _ => {}
        }
        let event = rest;
        let (mut body, prev) = event.split_at_checked(without_prev_len)?;
        let is_tombstone = flags & IS_TOMBSTONE != 0;
        if is_tombstone {
            body = body.strip_prefix(TYPE_DELETE)?;
        }
        let record = take_field(body, KV_FIELD)?;
        let prev = if prev.is_empty() {
            None
        } else {
            Some(take_field(prev, PREV_KV_FIELD)?)
        };
        let predecessor = match flags & KIND_MASK {
            KIND_TOMBSTONE => Predecessor::Tombstone(revision),
            KIND_PUT => Predecessor::Put(revision),
            KIND_INLINE => Predecessor::Inline {
                sub: inline_sub,
                record: prev?,
            },
            _ => Predecessor::None,
        };
        let is_create = flags & IS_CREATE != 0;
        Some(LogRow {
            predecessor,
            event,
            without_prev_len,
            record,
            prev,
            is_tombstone,
            is_create,
        })
    }
}

/// The content of a field that must fill `bytes` exactly.
fn take_field(bytes: &[u8], tag: u8) -> Option<&[u8]> {
    let mut rest = bytes.strip_prefix(&[tag])?;
    let len = prost::encoding::decode_varint(&mut rest).ok()?;
    (rest.len() as u64 == len).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::client::mvccpb::{Event, KeyValue, event::EventType};
    use prost::Message;

    fn put(mod_revision: i64, version: i64) -> KeyValue {
        KeyValue {
            key: "key".into(),
            create_revision: mod_revision - version + 1,
            mod_revision,
            version,
            value: "value".into(),
            lease: -1,
        }
    }

    fn round_trip(kv: &KeyValue, predecessor: Predecessor<'_>, prev: Option<&KeyValue>) -> Event {
        let (record, prev_record) = (kv.encode_to_vec(), prev.map(Message::encode_to_vec));
        let row = encode(&record, predecessor, prev_record.as_deref());
        let parsed = LogRow::parse(Revision::new(kv.mod_revision, 3), &row).unwrap();
        assert_eq!(parsed.predecessor, predecessor);
        assert_eq!(parsed.record, record);
        assert_eq!(parsed.prev, prev_record.as_deref());
        for cut in 0..row.len() {
            let _ = LogRow::parse(Revision::new(kv.mod_revision, 3), &row[..cut]);
        }
        let short = Event::decode(&parsed.event[..parsed.without_prev_len]).unwrap();
        let event = Event::decode(parsed.event).unwrap();
        assert_eq!(
            short,
            Event {
                prev_kv: None,
                ..event.clone()
            }
        );
        event
    }

    #[test]
    fn rows_hold_the_event_and_the_predecessor() {
        let (old, new) = (put(5, 1), put(6, 2));
        let old_record = old.encode_to_vec();
        let event = round_trip(
            &new,
            Predecessor::Inline {
                sub: 9,
                record: &old_record,
            },
            Some(&old),
        );
        assert_eq!(
            event,
            Event {
                r#type: EventType::Put.into(),
                kv: Some(new.clone()),
                prev_kv: Some(old.clone())
            }
        );

        let tombstone = KeyValue {
            key: "key".into(),
            mod_revision: 7,
            ..KeyValue::default()
        };
        let event = round_trip(
            &tombstone,
            Predecessor::Put(Revision::new(7, 0)),
            Some(&old),
        );
        assert_eq!(
            event,
            Event {
                r#type: EventType::Delete.into(),
                kv: Some(tombstone),
                prev_kv: Some(old)
            }
        );

        let event = round_trip(
            &put(8, 1),
            Predecessor::Tombstone(Revision::new(7, 0)),
            None,
        );
        assert_eq!(event.prev_kv, None);
        round_trip(&put(8, 1), Predecessor::None, None);
    }

    #[test]
    fn a_row_under_another_revision_is_corrupt() {
        let row = encode(&put(5, 1).encode_to_vec(), Predecessor::None, None);
        assert!(LogRow::parse(Revision::new(6, 0), &row).is_err());
    }
}
