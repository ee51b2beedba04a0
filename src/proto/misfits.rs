//! Fields that come with another wire type than the one they are declared with.
//!
//! To Go's library such a field is an unknown one, and passed over; prost gives
//! the whole message up. So what prost has given up is written down again
//! without them, by the descriptors. Nobody waits for that who sends what is
//! declared.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message as _;
use prost::encoding::{self, DecodeContext, WireType};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

use super::{DESCRIPTORS, HEALTH_DESCRIPTORS};

/// How deep messages may lie in each other, as prost has it.
const MAX_DEPTH: u32 = 100;

/// Fields by number.
type Fields = HashMap<u32, Field>;

/// How a field may come.
struct Field {
    wire_type: WireType,
    /// Several numbers in one field.
    may_be_packed: bool,
    /// Of a message: its full name.
    message: Option<String>,
}

impl Field {
    fn new(field: &FieldDescriptorProto) -> Field {
        let wire_type = match field.r#type() {
            Type::Fixed64 | Type::Sfixed64 | Type::Double => WireType::SixtyFourBit,
            Type::Fixed32 | Type::Sfixed32 | Type::Float => WireType::ThirtyTwoBit,
            Type::String | Type::Bytes | Type::Message => WireType::LengthDelimited,
            Type::Group => WireType::StartGroup,
            _ => WireType::Varint,
        };
        let is_number = !matches!(wire_type, WireType::LengthDelimited | WireType::StartGroup);
        let is_message = field.r#type() == Type::Message;
        Field {
            wire_type,
            may_be_packed: is_number && field.label() == Label::Repeated,
            message: is_message.then(|| field.type_name().trim_start_matches('.').to_owned()),
        }
    }

    fn takes(&self, wire_type: WireType) -> bool {
        wire_type == self.wire_type
            || (wire_type == WireType::LengthDelimited && self.may_be_packed)
    }
}

/// The messages of clients, by full name.
static MESSAGES: LazyLock<HashMap<String, Fields>> = LazyLock::new(|| {
    let mut messages = HashMap::new();
    for set in [DESCRIPTORS, HEALTH_DESCRIPTORS] {
        let set = FileDescriptorSet::decode(set).expect("descriptors are compiled in");
        for file in &set.file {
            add(&mut messages, file.package(), &file.message_type);
        }
    }
    messages
});

fn add(messages: &mut HashMap<String, Fields>, scope: &str, declared: &[DescriptorProto]) {
    for message in declared {
        let name = format!("{scope}.{}", message.name());
        let fields = message.field.iter();
        let fields = fields.map(|field| (field.number().unsigned_abs(), Field::new(field)));
        add(messages, &name, &message.nested_type);
        messages.insert(name, fields.collect());
    }
}

/// The message again, without the fields that do not fit. None if it is no
/// message of that name, or no message at all.
pub(super) fn without(name: &str, encoded: &[u8]) -> Option<Vec<u8>> {
    let mut fitting = Vec::with_capacity(encoded.len());
    copy(name, encoded, &mut fitting, MAX_DEPTH)?;
    Some(fitting)
}

fn copy(name: &str, mut rest: &[u8], fitting: &mut Vec<u8>, depth: u32) -> Option<()> {
    let fields = MESSAGES.get(name)?;
    let depth = depth.checked_sub(1)?;
    while !rest.is_empty() {
        let whole = rest;
        let (number, wire_type) = encoding::decode_key(&mut rest).ok()?;
        let mut content = rest;
        encoding::skip_field(wire_type, number, &mut rest, DecodeContext::default()).ok()?;
        let whole = &whole[..whole.len() - rest.len()];
        match fields.get(&number) {
            Some(field) if !field.takes(wire_type) => {}
            Some(Field {
                message: Some(message),
                ..
            }) => {
                let length = encoding::decode_varint(&mut content).ok()?;
                let content = content.get(..usize::try_from(length).ok()?)?;
                let mut inner = Vec::with_capacity(content.len());
                copy(message, content, &mut inner, depth)?;
                encoding::bytes::encode(number, &inner, fitting);
            }
            Some(_) | None => fitting.extend_from_slice(whole),
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of these pieces of a message stay.
    fn check(name: &str, pieces: &[(&[u8], bool)]) {
        let encoded: Vec<u8> = pieces.iter().flat_map(|piece| piece.0).copied().collect();
        let staying = pieces.iter().filter(|piece| piece.1);
        let staying: Vec<u8> = staying.flat_map(|piece| piece.0).copied().collect();
        assert_eq!(without(name, &encoded), Some(staying), "{encoded:?}");
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let put = "etcdserverpb.PutRequest";
        let key: (&[u8], bool) = (&[0x0a, 1, b'k'], true);
        check(put, &[(&[0x08, 5], false), key]);
        check(put, &[(&[0x0d, 1, 2, 3, 4], false), key]);
        check(put, &[key, (&[0x1a, 1, b'x'], false)]);
        check(put, &[key, (&[0x19, 1, 2, 3, 4, 5, 6, 7, 8], false)]);
        check(put, &[(&[0x0b, 0x08, 1, 0x0c], false), key]);
        // Not known at all.
        check(put, &[key, (&[0xa2, 6, 1, b'x'], true)]);
        check(put, &[key, (&[0xa3, 6, 0x08, 1, 0xa4, 6], true)]);
        // Of numbers, one or several.
        let create = "etcdserverpb.WatchCreateRequest";
        check(create, &[(&[0x28, 1], true), (&[0x2a, 2, 0, 1], true)]);
        check(create, &[(&[0x2d, 0, 0, 0, 0], false)]);
    }

    #[test]
    fn messages_in_messages_are_cleaned_too() {
        let txn = "etcdserverpb.TxnRequest";
        let encoded = [0x12, 7, 0x12, 5, 0x08, 5, 0x0a, 1, b'w'];
        let fitting = [0x12, 5, 0x12, 3, 0x0a, 1, b'w'];
        assert_eq!(without(txn, &encoded), Some(fitting.to_vec()));
    }

    #[test]
    fn what_is_no_message_stays_none() {
        let put = "etcdserverpb.PutRequest";
        for encoded in [&[0x0a, 9][..], &[0x0e, 1], &[0xa4, 6], &[0x0a]] {
            assert_eq!(without(put, encoded), None, "{encoded:?}");
        }
        assert_eq!(without("etcdserverpb.Nothing", &[]), None);
        let mut deep = Vec::new();
        for _ in 0..200 {
            let mut outer = Vec::new();
            encoding::bytes::encode(4, &deep, &mut outer);
            deep.clear();
            encoding::bytes::encode(2, &outer, &mut deep);
        }
        assert_eq!(without("etcdserverpb.TxnRequest", &deep), None);
    }
}
