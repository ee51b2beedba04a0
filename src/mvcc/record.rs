//! Records: a key's state after one change, in the form that is stored, sent
//! and hashed alike: the protobuf encoding of `mvccpb.KeyValue` with defaults
//! left out and fields in number order.
//!
//! Because the form is fixed, a list can copy records without looking inside,
//! `keys_only` is a prefix of a record, and HashKV can feed stored bytes. What
//! does look inside reads the fields in place.

use crate::proto::mvccpb::KeyValue;
use crate::storage::{Column, StorageError};
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};

/// A record's fields, where they stand.
///
/// Invariant of a stored record: the key is not empty, and either
/// `1 <= version` and `create_revision <= mod_revision` (a put), or all of
/// version, create revision, value and lease are absent (a tombstone).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fields<'a> {
    pub(super) key: &'a [u8],
    pub(super) create_revision: i64,
    pub(super) mod_revision: i64,
    pub(super) version: i64,
    pub(super) value: &'a [u8],
    pub(super) lease: i64,
    /// Length of the part before the value: key, revisions and version.
    pub(super) before_value: usize,
    /// Length of the part up to the end of the value.
    pub(super) after_value: usize,
    /// Length of the part that holds the key alone.
    pub(super) after_key: usize,
}

impl<'a> Fields<'a> {
    /// Reads a record. The error says what is wrong; the caller knows where
    /// the record came from.
    pub(super) fn parse(record: &'a [u8]) -> Result<Fields<'a>, &'static str> {
        let mut fields = Fields {
            key: &[],
            create_revision: 0,
            mod_revision: 0,
            version: 0,
            value: &[],
            lease: 0,
            before_value: 0,
            after_value: 0,
            after_key: 0,
        };
        let mut rest = record;
        let mut last_tag = 0;
        while !rest.is_empty() {
            let (tag, wire_type) =
                decode_key(&mut rest).map_err(|_| "a field's key is malformed")?;
            if tag <= last_tag {
                return Err("fields are out of order");
            }
            last_tag = tag;
            match (tag, wire_type) {
                (1, WireType::LengthDelimited) => fields.key = take_bytes(&mut rest)?,
                (2, WireType::Varint) => fields.create_revision = take_int64(&mut rest)?,
                (3, WireType::Varint) => fields.mod_revision = take_int64(&mut rest)?,
                (4, WireType::Varint) => fields.version = take_int64(&mut rest)?,
                (5, WireType::LengthDelimited) => fields.value = take_bytes(&mut rest)?,
                (6, WireType::Varint) => fields.lease = take_int64(&mut rest)?,
                _ => return Err("a field is unknown"),
            }
            let end = record.len() - rest.len();
            if tag == 1 {
                fields.after_key = end;
            }
            if tag <= 4 {
                fields.before_value = end;
            }
            if tag <= 5 {
                fields.after_value = end;
            }
        }
        fields.check()?;
        Ok(fields)
    }

    pub(super) fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// Is this the first version of a life of its key? (WAT-20)
    pub(super) fn is_create(&self) -> bool {
        self.version == 1
    }

    fn check(&self) -> Result<(), &'static str> {
        let is_sound = if self.is_tombstone() {
            self.create_revision == 0 && self.value.is_empty() && self.lease == 0
        } else {
            self.version > 0
                && self.create_revision > 0
                && self.create_revision <= self.mod_revision
        };
        if self.key.is_empty() {
            Err("the key is empty")
        } else if self.mod_revision <= 0 || !is_sound {
            Err("the revisions contradict each other")
        } else {
            Ok(())
        }
    }
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], &'static str> {
    let len = decode_varint(rest).map_err(|_| "a length is malformed")?;
    let len = usize::try_from(len).map_err(|_| "a length is malformed")?;
    let (bytes, after) = rest
        .split_at_checked(len)
        .ok_or("a field is longer than its record")?;
    *rest = after;
    Ok(bytes)
}

fn take_int64(rest: &mut &[u8]) -> Result<i64, &'static str> {
    // int64 on the wire is its two's complement.
    decode_varint(rest)
        .map(|value| value as i64)
        .map_err(|_| "a number is malformed")
}

/// Reads a record out of a row of `column`, whose key is named in the error.
pub(super) fn parse_in<'a>(
    column: Column,
    row_key: &[u8],
    record: &'a [u8],
) -> Result<Fields<'a>, StorageError> {
    Fields::parse(record).map_err(|problem| StorageError::corrupt(column, row_key, problem))
}

/// A record as message. Only for records that were checked when they were read.
pub(super) fn to_key_value(
    column: Column,
    row_key: &[u8],
    record: impl bytes::Buf,
) -> Result<KeyValue, StorageError> {
    KeyValue::decode(record)
        .map_err(|error| StorageError::corrupt(column, row_key, error.to_string()))
}

/// How a row of `Current` is laid out: the sub-revision (u32, big-endian) of
/// the key's last change, then its record, whose key is the row's.
pub(super) mod current_row {
    use super::*;

    pub(in crate::mvcc) const SUB_LEN: usize = 4;

    /// The sub-revision and the record of a row.
    pub(in crate::mvcc) fn parse<'a>(
        user_key: &[u8],
        value: &'a [u8],
    ) -> Result<(u32, &'a [u8]), StorageError> {
        let corrupt = |problem| StorageError::corrupt(Column::Current, user_key, problem);
        let (sub, record) = value
            .split_first_chunk::<SUB_LEN>()
            .ok_or_else(|| corrupt("the row is too short"))?;
        // A list does not read its records any further than this.
        if !starts_with_key(record, user_key) {
            return Err(corrupt("the record is of another key"));
        }
        Ok((u32::from_be_bytes(*sub), record))
    }

    fn starts_with_key(record: &[u8], user_key: &[u8]) -> bool {
        const KEY_FIELD: u8 = 0x0a;
        let Some((&KEY_FIELD, mut rest)) = record.split_first() else {
            return false;
        };
        take_bytes(&mut rest).is_ok_and(|key| key == user_key)
    }

    /// The store's revision, from the row under the empty key.
    pub(in crate::mvcc) fn parse_revision(value: &[u8]) -> Result<i64, StorageError> {
        let revision = value.try_into().map(i64::from_be_bytes).unwrap_or(0);
        if revision < crate::mvcc::revision::FIRST_MAIN {
            return Err(StorageError::corrupt(
                Column::Current,
                b"",
                "the store's revision is malformed",
            ));
        }
        Ok(revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_put() -> impl Strategy<Value = KeyValue> {
        let bytes = |min| prop::collection::vec(any::<u8>(), min..300).prop_map(bytes::Bytes::from);
        (
            bytes(1),
            bytes(0),
            1..i64::MAX,
            0..1000i64,
            1..i64::MAX,
            any::<i64>(),
        )
            .prop_map(
                |(key, value, create_revision, age, version, lease)| KeyValue {
                    key,
                    value,
                    create_revision,
                    mod_revision: create_revision.saturating_add(age),
                    version,
                    lease,
                },
            )
    }

    proptest! {
        #[test]
        fn fields_are_what_was_encoded(kv in any_put()) {
            let record = kv.encode_to_vec();
            let fields = Fields::parse(&record).unwrap();
            prop_assert_eq!(fields.key, &kv.key[..]);
            prop_assert_eq!(fields.value, &kv.value[..]);
            prop_assert_eq!(
                (fields.create_revision, fields.mod_revision, fields.version, fields.lease),
                (kv.create_revision, kv.mod_revision, kv.version, kv.lease)
            );
            let keys_only = KeyValue { value: bytes::Bytes::new(), lease: 0, ..kv.clone() };
            prop_assert_eq!(&record[..fields.before_value], keys_only.encode_to_vec());
            let without_lease = KeyValue { lease: 0, ..kv.clone() };
            prop_assert_eq!(&record[..fields.after_value], without_lease.encode_to_vec());
            let key_alone = KeyValue { key: kv.key.clone(), ..KeyValue::default() };
            prop_assert_eq!(&record[..fields.after_key], key_alone.encode_to_vec());
        }

        #[test]
        fn cut_or_changed_records_never_panic(kv in any_put(), cut in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut record = kv.encode_to_vec();
            let at = cut.index(record.len());
            let _ = Fields::parse(&record[..at]);
            record[at] = byte;
            let _ = Fields::parse(&record);
        }
    }

    #[test]
    fn records_that_cannot_be_ours_are_refused() {
        let record = |kv: KeyValue| kv.encode_to_vec();
        let key = bytes::Bytes::from_static(b"k");
        let tombstone = KeyValue {
            key: key.clone(),
            mod_revision: 7,
            ..KeyValue::default()
        };
        assert!(
            Fields::parse(&record(tombstone.clone()))
                .unwrap()
                .is_tombstone()
        );
        assert!(Fields::parse(&[]).is_err());
        assert!(
            Fields::parse(&record(KeyValue {
                key,
                ..KeyValue::default()
            }))
            .is_err()
        );
        assert!(
            Fields::parse(&record(KeyValue {
                lease: 1,
                ..tombstone.clone()
            }))
            .is_err()
        );
        let reversed = KeyValue {
            create_revision: 8,
            version: 1,
            ..tombstone
        };
        assert!(Fields::parse(&record(reversed)).is_err());
    }
}
