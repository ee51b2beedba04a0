//! One server as the tester sees it: bytes in, bytes and a status out.
//!
//! Everything is sent as a stream of one message and read as a stream of any
//! number, which on the wire is what unary calls are too. So one function
//! serves every method, and bodies that no encoder makes can be sent.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::request::Request;

/// No server needs so long; it bounds a test that would hang otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came back: the messages, and the status if it was not OK.
#[derive(Clone, Debug)]
pub struct Answer {
    pub messages: Vec<Bytes>,
    pub failure: Option<Failure>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    pub text: String,
}

#[derive(Clone)]
pub struct Caller {
    grpc: Grpc<Channel>,
}

impl Caller {
    pub fn new(channel: Channel) -> Caller {
        let grpc = Grpc::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        Caller { grpc }
    }

    pub async fn call(&self, request: &Request) -> Answer {
        let mut messages = Vec::new();
        let exchange = self.exchange(request.path(), request.body(), &mut messages);
        let failure = match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(Ok(())) => None,
            Ok(Err(status)) => Some(Failure {
                code: status.code(),
                text: status.message().to_owned(),
            }),
            Err(_) => Some(Failure {
                code: Code::Unknown,
                text: format!("(tester: no answer within {PATIENCE:?})"),
            }),
        };
        Answer { messages, failure }
    }

    async fn exchange(
        &self,
        path: &'static str,
        body: Bytes,
        messages: &mut Vec<Bytes>,
    ) -> Result<(), Status> {
        let mut grpc = self.grpc.clone();
        grpc.ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let body = tonic::Request::new(tokio_stream::once(body));
        let path = PathAndQuery::from_static(path);
        let mut answers = grpc.streaming(body, path, Verbatim).await?.into_inner();
        while let Some(message) = answers.message().await? {
            messages.push(message);
        }
        Ok(())
    }
}

/// Passes messages on as they are.
struct Verbatim;

impl Codec for Verbatim {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Verbatim;
    type Decoder = Verbatim;

    fn encoder(&mut self) -> Verbatim {
        Verbatim
    }

    fn decoder(&mut self) -> Verbatim {
        Verbatim
    }
}

impl Encoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
