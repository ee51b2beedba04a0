//! How messages of our services meet gRPC's buffers: prost, with buffers that
//! fit. `build.rs` names this codec to the code generator.
//!
//! tonic's own prost codec starts each call with 8 KiB in each direction and
//! grows an answer by doubling. Requests here are mostly a few hundred bytes,
//! and their keys and values keep the buffer they came in alive while they
//! wait to be written; answers are up to many megabytes, and then doubling
//! copies them twice.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, EncodeBuf};
use tonic_prost::ProstCodec;

/// What a call's buffers hold before the first allocation beyond.
const BUFFER_BYTES: usize = 1 << 10;

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
    Decode: Message + Default + Send + 'static,
{
    type Encode = Encode;
    type Decode = Decode;
    type Encoder = Encoder<Encode>;
    type Decoder = <ProstCodec<Encode, Decode> as tonic::codec::Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        Encoder {
            message: PhantomData,
        }
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<Encode, Decode>::raw_decoder(buffer_settings())
    }
}

pub struct Encoder<Encode> {
    message: PhantomData<Encode>,
}

impl<Encode: Message> tonic::codec::Encoder for Encoder<Encode> {
    type Item = Encode;
    type Error = Status;

    fn encode(&mut self, message: Encode, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.encoded_len());
        message
            .encode(buffer)
            .map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffer_settings()
    }
}

fn buffer_settings() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, FRAME_BYTES)
}
