//! What the client sends, message by message: counted, and refused where Go's
//! library would refuse it before it looks inside (etcd's is grpc-go's
//! `rpc_util.go` and `stream.go`).
//!
//! That library reads a prefix when it wants a message, so its answers depend on
//! where a body ends: inside a prefix the body has just ended, inside a message
//! that is an error. A unary call is answered after its first message, whatever
//! comes behind and whether or not the client has ended its side; a call with
//! one request and many responses begins only when the client has ended its
//! side, and then there must have been one message.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use super::framing::{Framing, Step};
use super::methods::{Kind, Method};
use crate::metrics;

/// The body as the service gets it.
pub(in crate::rpc) struct RequestBody {
    inner: Body,
    method: &'static Method,
    intake: Intake,
    /// Passes next.
    queued: Option<Bytes>,
    /// Nothing comes any more, not even a refusal.
    is_ended: bool,
}

impl RequestBody {
    pub(super) fn new(inner: Body, method: &'static Method, limits: Limits) -> RequestBody {
        RequestBody {
            inner,
            method,
            intake: Intake::new(method.kind(), limits),
            queued: None,
            is_ended: false,
        }
    }

    /// What may pass of `data`, in up to two pieces, the second in `queued`.
    fn pass(&mut self, data: Bytes) -> Option<Bytes> {
        metrics::NETWORK_CLIENT_GRPC_RECEIVED_BYTES_TOTAL.inc_by(data.len() as u64);
        let before = self.intake.messages;
        let (held, passing) = self.intake.take(data);
        self.method.received.inc_by(self.intake.messages - before);
        if held.is_none() {
            return passing;
        }
        self.queued = passing;
        held
    }

    /// The end, which a refusal may be.
    fn end(&mut self, refusal: Option<Status>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.is_ended = true;
        Poll::Ready(refusal.map(Err))
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(data) = self.queued.take() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            if let Some(refusal) = self.intake.refusal.take() {
                return self.end(Some(refusal));
            }
            if self.is_ended || self.intake.is_enough() {
                return self.end(None);
            }
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        if let Some(data) = self.pass(data) {
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                    }
                    // Trailers of a client mean nothing, but that it has ended.
                    Err(_) => {
                        let refusal = self.intake.end();
                        return self.end(refusal);
                    }
                },
                Some(Err(status)) => return self.end(Some(status)),
                None => {
                    let refusal = self.intake.end();
                    return self.end(refusal);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        // Not what the inner body says: a call without a message is refused,
        // and nobody would ask.
        self.is_ended
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// What is refused without looking into a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_message_bytes: usize,
    /// The client has named an encoding that is known.
    pub(super) may_compress: bool,
}

/// Follows the messages of a request.
#[derive(Debug)]
struct Intake {
    kind: Kind,
    limits: Limits,
    framing: Framing,
    /// Those that have passed.
    messages: u64,
    /// The message that is coming will be refused, once it is there.
    flaw: Option<Status>,
    /// To be said after what has passed.
    refusal: Option<Status>,
}

impl Intake {
    fn new(kind: Kind, limits: Limits) -> Intake {
        Intake {
            kind,
            limits,
            framing: Framing::default(),
            messages: 0,
            flaw: None,
            refusal: None,
        }
    }

    /// Takes the next piece of the body. Returns what may pass: a prefix whose
    /// beginning came in an earlier piece, and a part of this one. A prefix that
    /// is not whole is kept back, since it may be all that comes.
    fn take(&mut self, data: Bytes) -> (Option<Bytes>, Option<Bytes>) {
        let begun = self.framing.begun_prefix();
        let (mut from, mut held) = (0, None);
        let begun = (!begun.is_empty()).then(|| Bytes::copy_from_slice(begun));
        // Bytes of `data` that are used, and those that may pass.
        let (mut used, mut passing) = (0, 0);
        while self.refusal.is_none() && !self.is_enough() {
            let (taken, step) = self.framing.step(&data[used..]);
            used += taken;
            match step {
                Step::Prefix { flag, length } => {
                    self.judge(flag, length);
                    if self.refusal.is_some() || self.flaw.is_some() {
                        continue;
                    }
                    if let Some(begun) = begun.as_ref().filter(|_| held.is_none() && passing == 0) {
                        held = Some([begun, &data[..used]].concat().into());
                        from = used;
                    }
                    passing = used;
                }
                Step::Message => match self.flaw.take() {
                    Some(flaw) => self.refusal = Some(flaw),
                    None => {
                        passing = used;
                        self.count();
                    }
                },
                Step::More => {
                    if self.framing.is_in_message() && self.flaw.is_none() {
                        passing = used;
                    }
                    break;
                }
            }
        }
        let passing = data.slice(from..passing.max(from));
        (held, (!passing.is_empty()).then_some(passing))
    }

    /// A length is refused at once, a flag only with its message.
    fn judge(&mut self, flag: u8, length: usize) {
        let limit = self.limits.max_message_bytes;
        if length > limit {
            let text = format!("grpc: received message larger than max ({length} vs. {limit})");
            self.refusal = Some(Status::resource_exhausted(text));
            return;
        }
        self.flaw = match flag {
            0 => None,
            1 if self.limits.may_compress => None,
            1 => Some(Status::internal(
                "grpc: compressed flag set with identity or empty encoding",
            )),
            _ => Some(Status::internal(format!(
                "grpc: received unexpected payload format {flag}"
            ))),
        };
    }

    fn count(&mut self) {
        self.messages += 1;
        if self.kind == Kind::ServerStream && self.messages > 1 {
            self.refusal = Some(Status::internal(
                "cardinality violation: received multiple request messages for \
                 non-client-streaming RPC",
            ));
        }
    }

    /// Whether nothing that may still come matters.
    fn is_enough(&self) -> bool {
        self.kind == Kind::Unary && self.messages > 0
    }

    /// The client has ended its side: the refusal of that, if it is one.
    fn end(&mut self) -> Option<Status> {
        if self.framing.is_in_message() {
            let code = match self.kind {
                Kind::Unary => Code::Unknown,
                _ => Code::Internal,
            };
            return Some(Status::new(code, "unexpected EOF"));
        }
        match self.kind {
            Kind::Unary if self.messages == 0 => Some(Status::unknown("EOF")),
            Kind::ServerStream if self.messages == 0 => Some(Status::internal(
                "cardinality violation: received no request message from non-client-streaming RPC",
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;
    use crate::rpc::call::methods;

    const UNARY: &str = "/etcdserverpb.KV/Range";
    const SERVER_STREAM: &str = "/etcdserverpb.KV/RangeStream";
    const BIDI_STREAM: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

    /// The bytes that pass, and the refusal at the end, of a body that comes in
    /// pieces of this size.
    async fn pass(path: &str, body: &[u8], piece_bytes: usize) -> (Vec<u8>, Option<Status>) {
        let pieces: Vec<_> = body
            .chunks(piece_bytes)
            .map(|piece| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        let inner = Body::new(StreamBody::new(tokio_stream::iter(pieces)));
        let limits = Limits {
            max_message_bytes: 1000,
            may_compress: false,
        };
        let mut body = RequestBody::new(inner, methods::find(path).unwrap(), limits);
        let mut passed = Vec::new();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => passed.extend(frame.into_data().unwrap()),
                Err(refusal) => {
                    assert!(body.frame().await.is_none(), "a refusal is the end");
                    return (passed, Some(refusal));
                }
            }
        }
        (passed, None)
    }

    fn message(flag: u8, bytes: &[u8]) -> Vec<u8> {
        let length = (bytes.len() as u32).to_be_bytes();
        [&[flag][..], &length, bytes].concat()
    }

    /// What of `body` passes, and what is said then, however it is cut.
    async fn check(path: &str, body: &[&[u8]], passing: usize, refusal: Option<(Code, &str)>) {
        let passing = body[..passing].concat();
        let body = body.concat();
        for piece_bytes in 1..=body.len().max(1) {
            let (passed, refused) = pass(path, &body, piece_bytes).await;
            let refused = refused
                .as_ref()
                .map(|status| (status.code(), status.message()));
            assert_eq!(refused, refusal, "{path} {body:?} cut at {piece_bytes}");
            assert_eq!(passed, passing, "{path} {body:?} cut at {piece_bytes}");
        }
    }

    /// As recorded from etcd 3.7.3, as are all refusals here.
    #[tokio::test]
    async fn a_unary_call_has_its_first_message() {
        let (whole, empty) = (message(0, b"abc"), message(0, b""));
        let bad = message(9, b"abc");
        let half = &whole[..6];
        check(UNARY, &[&whole], 1, None).await;
        check(UNARY, &[&empty], 1, None).await;
        for rest in [&whole[..], half, &whole[..2], &bad] {
            check(UNARY, &[&whole, rest], 1, None).await;
            check(UNARY, &[&empty, rest], 1, None).await;
        }
        let nothing = Some((Code::Unknown, "EOF"));
        check(UNARY, &[], 0, nothing).await;
        check(UNARY, &[&whole[..4]], 0, nothing).await;
        let (passed, refusal) = pass(UNARY, half, 100).await;
        assert_eq!(passed, half);
        let refusal = refusal.unwrap();
        assert_eq!(refusal.code(), Code::Unknown);
        assert_eq!(refusal.message(), "unexpected EOF");
    }

    #[tokio::test]
    async fn a_call_with_many_responses_has_one_message() {
        let whole = message(0, b"abc");
        check(SERVER_STREAM, &[&whole], 1, None).await;
        check(SERVER_STREAM, &[&whole, &whole[..2]], 1, None).await;
        let none = "cardinality violation: received no request message from non-client-streaming \
                    RPC";
        check(SERVER_STREAM, &[], 0, Some((Code::Internal, none))).await;
        check(
            SERVER_STREAM,
            &[&whole[..4]],
            0,
            Some((Code::Internal, none)),
        )
        .await;
        let many = "cardinality violation: received multiple request messages for \
                    non-client-streaming RPC";
        let many = Some((Code::Internal, many));
        check(SERVER_STREAM, &[&whole, &whole, &whole], 2, many).await;
        let half = &whole[..7];
        let refusal = Some((Code::Internal, "unexpected EOF"));
        check(SERVER_STREAM, &[&whole, half], 2, refusal).await;
    }

    #[tokio::test]
    async fn a_stream_of_requests_ends_anywhere_but_in_a_message() {
        let whole = message(0, b"abc");
        check(BIDI_STREAM, &[], 0, None).await;
        check(BIDI_STREAM, &[&whole, &whole], 2, None).await;
        check(BIDI_STREAM, &[&whole, &whole[..4]], 1, None).await;
        let half = &whole[..5];
        let refusal = Some((Code::Internal, "unexpected EOF"));
        check(BIDI_STREAM, &[&whole, half], 2, refusal).await;
    }

    #[tokio::test]
    async fn what_a_prefix_must_not_say() {
        let whole = message(0, b"abc");
        let compressed = "grpc: compressed flag set with identity or empty encoding";
        let unknown = "grpc: received unexpected payload format 7";
        for (flag, text) in [(1, compressed), (7, unknown)] {
            let bad = message(flag, b"abc");
            let refusal = Some((Code::Internal, text));
            check(UNARY, &[&bad], 0, refusal).await;
            check(BIDI_STREAM, &[&whole, &bad, &whole], 1, refusal).await;
            check(BIDI_STREAM, &[&whole, &message(flag, b"")], 1, refusal).await;
            // Only once it is there.
            let cut = Some((Code::Internal, "unexpected EOF"));
            check(BIDI_STREAM, &[&whole, &bad[..7]], 1, cut).await;
        }
        let large = [0, 0, 0, 4, 0];
        let text = "grpc: received message larger than max (1024 vs. 1000)";
        let refusal = Some((Code::ResourceExhausted, text));
        check(UNARY, &[&large], 0, refusal).await;
        check(BIDI_STREAM, &[&whole, &large, &whole], 1, refusal).await;
    }
}
