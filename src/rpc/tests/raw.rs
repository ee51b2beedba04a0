//! Calls as bytes: what a client must not send, and what it is told then. All
//! codes and texts are recorded from etcd 3.7.3, except where it says so.

use std::io::Write as _;

use bytes::Bytes;
use http::Version;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tower::Service as _;

use super::*;
use crate::proto::health::health_client::HealthClient;
use crate::proto::health::{HealthCheckRequest, HealthListRequest};

const RANGE: &str = "/etcdserverpb.KV/Range";
const PUT: &str = "/etcdserverpb.KV/Put";
const TXN: &str = "/etcdserverpb.KV/Txn";
const RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const USER_ADD: &str = "/etcdserverpb.Auth/UserAdd";

/// A `RangeRequest` for the key `a`.
const KEY: &[u8] = &[0x0a, 1, b'a'];

/// A request that cannot be decoded, whichever it is meant to be.
const GARBAGE: &[u8] = &[0x0a, 9];

fn message(flag: u8, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_be_bytes();
    [&[flag][..], &length, content].concat()
}

fn request(path: &str, headers: &[(&str, &str)]) -> http::request::Builder {
    let mut request = http::Request::builder()
        .method("POST")
        .version(Version::HTTP_2)
        .uri(format!("http://a{path}"));
    let is_given = |name: &str| headers.iter().any(|header| header.0 == name);
    if !is_given("content-type") {
        request = request.header("content-type", "application/grpc");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request
}

/// What a call has come to.
#[derive(Debug)]
struct Outcome {
    http: u16,
    head: http::HeaderMap,
    body: Bytes,
    status: Status,
}

impl Fixture {
    async fn outcome<B>(&self, request: http::Request<B>) -> Outcome
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let response = self.services.clone().call(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().unwrap_or(&head.headers);
        let status = Status::from_header_map(trailers).expect("a status");
        Outcome {
            http: head.status.as_u16(),
            status,
            body: body.to_bytes(),
            head: head.headers,
        }
    }

    async fn send(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Outcome {
        let body = Full::new(Bytes::copy_from_slice(body));
        self.outcome(request(path, headers).body(body).unwrap())
            .await
    }

    async fn check(&self, path: &str, headers: &[(&str, &str)], body: &[u8], says: (Code, &str)) {
        let outcome = self.send(path, headers, body).await;
        let status = &outcome.status;
        assert_eq!(
            (outcome.http, status.code(), status.message()),
            (200, says.0, says.1),
            "{path} {headers:?} {body:?}"
        );
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_refused_by_their_head() {
    let fixture = Fixture::new(&[member(1, false)]);
    let body = message(0, KEY);
    let refused = fixture.send(RANGE, &[("content-type", "application/json")], &body);
    let refused = refused.await;
    assert_eq!(
        (refused.http, refused.status.code()),
        (415, Code::InvalidArgument)
    );
    assert!(refused.body.is_empty());

    let proto = [("content-type", "application/grpc+proto")];
    let answered = fixture.send(RANGE, &proto, &body).await;
    assert_eq!(answered.status.code(), Code::Ok);
    assert_eq!(answered.head["content-type"], proto[0].1);
    let refused = fixture.send("/a.B/C", &proto, &body).await;
    assert_eq!(refused.head["content-type"], proto[0].1);

    let late = fixture.send(RANGE, &[("grpc-timeout", "5s")], &body).await;
    assert_eq!((late.http, late.status.code()), (400, Code::Internal));
    let query = format!("{RANGE}?x=1");
    let text = "unknown method Range?x=1 for service etcdserverpb.KV";
    fixture
        .check(&query, &[], &body, (Code::Unimplemented, text))
        .await;
    // Before the service is looked at, and whatever it would say.
    let snappy = [("grpc-encoding", "snappy")];
    let text = "grpc: Decompressor is not installed for grpc-encoding \"snappy\"";
    for path in [RANGE, WATCH] {
        fixture
            .check(path, &snappy, &body, (Code::Unimplemented, text))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_none() {
    let fixture = Fixture::new(&[member(1, false)]);
    let garbage = message(0, GARBAGE);
    let unary = "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data";
    let stream = "grpc: failed to unmarshal the received message: proto: cannot parse invalid \
                  wire-format data";
    let health = "/grpc.health.v1.Health/Check";
    for (path, text) in [
        (RANGE, unary),
        (PUT, unary),
        (health, unary),
        (RANGE_STREAM, stream),
        (WATCH, stream),
        (KEEP_ALIVE, stream),
    ] {
        fixture
            .check(path, &[], &garbage, (Code::Internal, text))
            .await;
    }
    for bad in [&[0x0e, 1][..], &[0xa4, 6], &[0x0a, 100, 1], &[0x18, 0xff]] {
        let bad = message(0, bad);
        fixture.check(PUT, &[], &bad, (Code::Internal, unary)).await;
    }
    let name = message(0, &[0x0a, 1, 0xff]);
    let text = "grpc: error unmarshalling request: string field contains invalid UTF-8";
    for path in [USER_ADD, health] {
        fixture
            .check(path, &[], &name, (Code::Internal, text))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_do_not_fit_are_passed_over() {
    let fixture = Fixture::new(&[member(1, false)]);
    let no_key = (Code::InvalidArgument, "etcdserver: key is not provided");
    let put = message(0, &[0x08, 5, 0x12, 1, b'v']);
    fixture.check(PUT, &[], &put, no_key).await;
    let ok = (Code::Ok, "");
    let put = message(0, &[0x08, 5, 0x0a, 1, b'w', 0x1a, 1, b'x']);
    fixture.check(PUT, &[], &put, ok).await;
    let txn = message(0, &[0x12, 7, 0x12, 5, 0x08, 5, 0x0a, 1, b'w']);
    fixture.check(TXN, &[], &txn, ok).await;
    let empty = message(0, &[0x12, 2, 0x10, 5]);
    let no_op = (Code::InvalidArgument, "etcdserver: key not found");
    fixture.check(TXN, &[], &empty, no_op).await;
    let keep_alive = message(0, &[0x0a, 1, b'x']);
    fixture.check(KEEP_ALIVE, &[], &keep_alive, ok).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_do_not_end() {
    let fixture = Fixture::new(&[member(1, false)]);
    let (whole, half) = (message(0, KEY), &message(0, KEY)[..7]);
    fixture.check(RANGE, &[], &[], (Code::Unknown, "EOF")).await;
    let cut = "unexpected EOF";
    fixture.check(RANGE, &[], half, (Code::Unknown, cut)).await;
    for path in [RANGE_STREAM, WATCH, KEEP_ALIVE] {
        fixture.check(path, &[], half, (Code::Internal, cut)).await;
    }
    let none = "cardinality violation: received no request message from non-client-streaming RPC";
    fixture
        .check(RANGE_STREAM, &[], &[], (Code::Internal, none))
        .await;
    fixture.check(KEEP_ALIVE, &[], &[], (Code::Ok, "")).await;
    let two = [&whole[..], &whole].concat();
    fixture.check(RANGE, &[], &two, (Code::Ok, "")).await;
    let many = "cardinality violation: received multiple request messages for \
                non-client-streaming RPC";
    fixture
        .check(RANGE_STREAM, &[], &two, (Code::Internal, many))
        .await;
    let large = [0, 0, 0x40, 0, 0];
    let text = "grpc: received message larger than max (4194304 vs. 1572864)";
    for path in [RANGE, WATCH] {
        fixture
            .check(path, &[], &large, (Code::ResourceExhausted, text))
            .await;
    }
}

/// Whoever has sent its one message is answered, though it might say more.
#[tokio::test(flavor = "multi_thread")]
async fn a_unary_call_waits_for_nothing_else() {
    let fixture = Fixture::new(&[member(1, false)]);
    let frame = http_body::Frame::data(Bytes::from(message(0, KEY)));
    let first = tokio_stream::once(Ok::<_, std::io::Error>(frame));
    let body = StreamBody::new(tokio_stream::StreamExt::chain(
        first,
        tokio_stream::pending(),
    ));
    let call = fixture.outcome(request(RANGE, &[]).body(body).unwrap());
    let outcome = tokio::time::timeout(Duration::from_secs(10), call).await;
    assert_eq!(outcome.unwrap().status.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_gzip_is_told_as_go_does() {
    let fixture = Fixture::new(&[member(1, false)]);
    let gzipped = [("grpc-encoding", "gzip")];
    let good = gzip(&KEY.repeat(10));
    let answered = fixture.send(RANGE, &gzipped, &message(1, &gzip(KEY))).await;
    assert_eq!(answered.status.code(), Code::Ok);
    assert_eq!(answered.head["grpc-encoding"], "gzip");
    assert_eq!(answered.body[0], 1);
    // Not because it could be read.
    let could = [("grpc-accept-encoding", "gzip")];
    let answered = fixture.send(RANGE, &could, &message(0, KEY)).await;
    assert_eq!(answered.body[0], 0);

    let check = async |content: &[u8], text: &str| {
        let text = format!("grpc: {text}");
        let body = message(1, content);
        for path in [RANGE, WATCH] {
            fixture
                .check(path, &gzipped, &body, (Code::Internal, &text))
                .await;
        }
    };
    let header = "failed to decompress the message: gzip: invalid header";
    check(b"garbage that is long enough", header).await;
    for cut in [15, good.len() - 9, good.len() - 8, good.len() - 1] {
        let text = "failed to read decompressed data: unexpected EOF";
        check(&good[..cut], text).await;
    }
    let mut bad = good.clone();
    let sum = bad.len() - 8;
    bad[sum] ^= 1;
    let text = "failed to read decompressed data: gzip: invalid checksum";
    check(&bad, text).await;
    // etcd adds the offset, which depends on its own decoder.
    let mut bad = good.clone();
    bad[10] = 0xff;
    let text = "failed to read decompressed data: flate: corrupt input";
    check(&bad, text).await;

    let bomb = message(1, &gzip(&vec![0; 5 << 20]));
    let text = "grpc: received message after decompression larger than max 1572864";
    fixture
        .check(RANGE, &gzipped, &bomb, (Code::ResourceExhausted, text))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_of_the_whole_server_only() {
    let fixture = Fixture::new(&[member(1, false)]);
    let mut health = HealthClient::new(fixture.services.clone());
    let of = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    let serving = health.check(of("")).await.unwrap().into_inner();
    assert_eq!(serving.status, 1);
    let unknown = health.check(of("etcdserverpb.KV")).await.unwrap_err();
    assert_eq!(
        (unknown.code(), unknown.message()),
        (Code::NotFound, "unknown service")
    );
    let list = health
        .list(HealthListRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.statuses.len(), 1);
    assert_eq!(list.statuses[""], serving);

    for (service, status) in [("", 1), ("etcdserverpb.KV", 3)] {
        let watch = health.watch(of(service)).await.unwrap();
        let mut watch = watch.into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status, status);
        let next = tokio::time::timeout(Duration::from_millis(50), watch.message());
        assert!(next.await.is_err(), "nothing changes");
        if status == 3 {
            // Ours; etcd just closes the connection.
            fixture.shutdown.cancel();
            let end = watch.message().await.unwrap_err();
            assert_eq!(end.message(), status::STOPPED.text);
        }
    }
}
