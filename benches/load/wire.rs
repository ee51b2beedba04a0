//! The calls of the load generator, as cheap as they can be made: one
//! connection, generated messages of the server's set (a stored record stays
//! undecoded bytes), no interceptors. An answer that is an error ends the run:
//! no scenario expects one.

use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::Message;
use stele::proto::etcdserverpb::watch_request::RequestUnion;
use stele::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseKeepAliveRequest, LeaseKeepAliveResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RangeStreamResponse, ResponseHeader, TxnRequest, TxnResponse,
    WatchCreateRequest, WatchRequest, WatchResponse,
};
use stele::proto::mvccpb::{Event, KeyValue};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

/// Requests of one stream on their way: as many as a client waits with.
const STREAM_QUEUE: usize = 256;

/// One connection; clones share it.
#[derive(Clone)]
pub struct Wire {
    grpc: Grpc<Channel>,
}

impl Wire {
    pub fn new(channel: Channel) -> Wire {
        let grpc = Grpc::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        Wire { grpc }
    }

    pub async fn range(&mut self, request: RangeRequest) -> RangeResponse {
        self.unary("/etcdserverpb.KV/Range", request).await
    }

    pub async fn put(&mut self, request: PutRequest) -> PutResponse {
        self.unary("/etcdserverpb.KV/Put", request).await
    }

    pub async fn txn(&mut self, request: TxnRequest) -> TxnResponse {
        self.unary("/etcdserverpb.KV/Txn", request).await
    }

    pub async fn compact(&mut self, request: CompactionRequest) -> CompactionResponse {
        self.unary("/etcdserverpb.KV/Compact", request).await
    }

    pub async fn grant(&mut self, request: LeaseGrantRequest) -> LeaseGrantResponse {
        self.unary("/etcdserverpb.Lease/LeaseGrant", request).await
    }

    pub async fn range_stream(&mut self, request: RangeRequest) -> Streaming<RangeStreamResponse> {
        const PATH: &str = "/etcdserverpb.KV/RangeStream";
        self.ready(PATH).await;
        let codec = ProstCodec::<RangeRequest, RangeStreamResponse>::default();
        self.grpc
            .server_streaming(
                Request::new(request),
                PathAndQuery::from_static(PATH),
                codec,
            )
            .await
            .unwrap_or_else(|status| panic!("{PATH}: {status}"))
            .into_inner()
    }

    /// A watch stream with its first watcher, which is created when this
    /// returns.
    pub async fn watch(&mut self, first: WatchCreateRequest) -> WatchStream {
        let id = first.watch_id;
        let first = create_request(first);
        let mut stream = self.stream("/etcdserverpb.Watch/Watch", first).await;
        expect_created(&mut stream, id).await;
        stream
    }

    /// A keep-alive stream whose first request is on its way.
    pub async fn keep_alive(
        &mut self,
        first: LeaseKeepAliveRequest,
    ) -> OpenStream<LeaseKeepAliveRequest, LeaseKeepAliveResponse> {
        self.stream("/etcdserverpb.Lease/LeaseKeepAlive", first)
            .await
    }

    async fn unary<Q, A>(&mut self, path: &'static str, request: Q) -> A
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.ready(path).await;
        let codec = ProstCodec::<Q, A>::default();
        self.grpc
            .unary(
                Request::new(request),
                PathAndQuery::from_static(path),
                codec,
            )
            .await
            .unwrap_or_else(|status| panic!("{path}: {status}"))
            .into_inner()
    }

    /// etcd's answer begins with the answer to the first request, and this
    /// waits for its beginning: so the request comes with the stream.
    async fn stream<Q, A>(&mut self, path: &'static str, first: Q) -> OpenStream<Q, A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let (requests, queue) = mpsc::channel(STREAM_QUEUE);
        requests.try_send(first).expect("an empty queue has room");
        self.ready(path).await;
        let codec = ProstCodec::<Q, A>::default();
        let request = Request::new(ReceiverStream::new(queue));
        let answers = self
            .grpc
            .streaming(request, PathAndQuery::from_static(path), codec)
            .await
            .unwrap_or_else(|status| panic!("{path}: {status}"))
            .into_inner();
        OpenStream { requests, answers }
    }

    async fn ready(&mut self, path: &'static str) {
        self.grpc
            .ready()
            .await
            .unwrap_or_else(|error| panic!("{path}: no connection: {error}"));
    }
}

/// Both directions of a stream, which lives as long as this.
pub struct OpenStream<Q, A> {
    requests: mpsc::Sender<Q>,
    answers: Streaming<A>,
}

pub type WatchStream = OpenStream<WatchRequest, WatchResponse>;

impl<Q, A> OpenStream<Q, A> {
    pub async fn send(&mut self, request: Q) {
        let sent = self.requests.send(request).await;
        assert!(sent.is_ok(), "the server ended a stream");
    }

    pub async fn next(&mut self) -> A {
        next(&mut self.answers).await
    }
}

impl WatchStream {
    /// Creates one more watcher on the stream.
    pub async fn create(&mut self, watch: WatchCreateRequest) {
        let id = watch.watch_id;
        self.send(create_request(watch)).await;
        expect_created(self, id).await;
    }

    /// The next events, and the watcher they are for.
    pub async fn events(&mut self) -> (i64, Vec<Bytes>) {
        let response = self.next().await;
        assert!(!response.canceled, "a watcher is cancelled: {response:?}");
        (response.watch_id, response.events)
    }
}

async fn expect_created(stream: &mut WatchStream, id: i64) {
    let response = stream.next().await;
    assert!(
        response.created && response.watch_id == id,
        "a watcher is created: {response:?}"
    );
}

fn create_request(create: WatchCreateRequest) -> WatchRequest {
    WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    }
}

/// The next message of a stream that must not end.
pub async fn next<A>(answers: &mut Streaming<A>) -> A {
    match answers.message().await {
        Ok(Some(answer)) => answer,
        Ok(None) => panic!("the server ended a stream"),
        Err(status) => panic!("a stream failed: {status}"),
    }
}

pub fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.expect("an answer has a header").revision
}

/// Whether an encoded `KeyValue` is that of `key` with a value of this size.
/// The key is its first field in every server; nothing else is decoded.
pub fn is_record(record: &[u8], key: &[u8], value_bytes: usize) -> bool {
    const KEY_TAG: u8 = 0x0a;
    // Keys are shorter than 128 bytes: their length is one byte.
    record.len() > 2 + key.len() + value_bytes
        && record[0] == KEY_TAG
        && usize::from(record[1]) == key.len()
        && record[2..].starts_with(key)
}

pub fn decode_record(record: &Bytes) -> KeyValue {
    KeyValue::decode(record.clone()).expect("a stored record decodes")
}

/// What was put, by an encoded event that must be no deletion.
pub fn put_record(event: &Bytes) -> KeyValue {
    let event = Event::decode(event.clone()).expect("an event decodes");
    assert_eq!(event.r#type, 0, "nothing is deleted");
    event.kv.expect("an event has a record")
}
