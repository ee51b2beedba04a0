//! How messages of our services meet gRPC's buffers: prost, with buffers that
//! fit and with patience for fields that do not (`misfits`). `build.rs` names
//! this codec to the code generator.
//!
//! tonic's own prost codec starts each call with 8 KiB in each direction and
//! grows an answer by doubling. Requests here are mostly a few hundred bytes,
//! and their keys and values keep the buffer they came in alive while they
//! wait to be written; answers are up to many megabytes, and then doubling
//! copies them twice.

use std::marker::PhantomData;

use bytes::{Buf as _, Bytes};
use prost::{DecodeError, Message, Name};
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, EncodeBuf};

use super::misfits;

/// What a call's buffers hold before the first allocation beyond.
const BUFFER_BYTES: usize = 1 << 10;

/// What a message may have. The other libraries take no larger one, and etcd
/// sends none (LIM-4).
pub const MAX_MESSAGE_BYTES: usize = i32::MAX as usize;

/// How a larger one is refused, before its sizes.
pub const TOO_LARGE: &str = "trying to send message larger than max";

/// A stream's messages are put together into frames of about this size while
/// more of them are ready (tonic's default).
const FRAME_BYTES: usize = 32 << 10;

pub struct Codec<Encode, Decode> {
    messages: PhantomData<(Encode, Decode)>,
}

impl<Encode, Decode> Default for Codec<Encode, Decode> {
    fn default() -> Self {
        Codec {
            messages: PhantomData,
        }
    }
}

impl<Encode, Decode> tonic::codec::Codec for Codec<Encode, Decode>
where
    Encode: Message + Send + 'static,
    Decode: Message + Name + Default + Send + 'static,
{
    type Encode = Encode;
    type Decode = Decode;
    type Encoder = Encoder<Encode>;
    type Decoder = Decoder<Decode>;

    fn encoder(&mut self) -> Self::Encoder {
        Encoder {
            message: PhantomData,
        }
    }

    fn decoder(&mut self) -> Self::Decoder {
        Decoder {
            message: PhantomData,
        }
    }
}

pub struct Encoder<Encode> {
    message: PhantomData<Encode>,
}

impl<Encode: Message> tonic::codec::Encoder for Encoder<Encode> {
    type Item = Encode;
    type Error = Status;

    fn encode(&mut self, message: Encode, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let encoded_bytes = message.encoded_len();
        if encoded_bytes > MAX_MESSAGE_BYTES {
            return Err(too_large(encoded_bytes));
        }
        buffer.reserve(encoded_bytes);
        message
            .encode(buffer)
            .map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffer_settings()
    }
}

pub struct Decoder<Decode> {
    message: PhantomData<Decode>,
}

impl<Decode: Message + Name + Default> tonic::codec::Decoder for Decoder<Decode> {
    type Item = Decode;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Decode>, Status> {
        // Shares the buffer, as the keys and values in the message will.
        let encoded = buffer.copy_to_bytes(buffer.remaining());
        decode(encoded)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffer_settings()
    }
}

/// What prost says of a field that comes as it is not declared.
const MISFIT: &str = "invalid wire type";

fn decode<M: Message + Name + Default>(encoded: Bytes) -> Result<M, DecodeError> {
    let error = match M::decode(encoded.clone()) {
        Ok(message) => return Ok(message),
        Err(error) => error,
    };
    if !error.to_string().contains(MISFIT) {
        return Err(error);
    }
    let Some(fitting) = misfits::without(&M::full_name(), &encoded) else {
        return Err(error);
    };
    M::decode(Bytes::from(fitting)).map_err(|_| error)
}

/// The refusal to send so much, before it is encoded.
fn too_large(encoded_bytes: usize) -> Status {
    let text = format!("{TOO_LARGE} ({encoded_bytes} vs. {MAX_MESSAGE_BYTES})");
    Status::resource_exhausted(text)
}

fn buffer_settings() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, FRAME_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::PutRequest;

    #[test]
    fn a_field_that_does_not_fit_is_not_there() {
        let put: PutRequest = decode(Bytes::from_static(&[0x08, 5, 0x12, 1, b'v'])).unwrap();
        assert_eq!((&put.key[..], &put.value[..]), (&b""[..], &b"v"[..]));
        for nonsense in [&[0x08, 5, 0x0a, 9][..], &[0x0a, 9], &[0x0e, 1]] {
            let nonsense = Bytes::copy_from_slice(nonsense);
            assert!(decode::<PutRequest>(nonsense).is_err());
        }
    }

    #[test]
    fn what_is_too_large_is_not_encoded() {
        let refusal = too_large(MAX_MESSAGE_BYTES + 1);
        assert_eq!(
            refusal.message(),
            "trying to send message larger than max (2147483648 vs. 2147483647)"
        );
    }
}
