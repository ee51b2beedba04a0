//! The two bodies of a call, watched in passing: messages and bytes are
//! counted, and the final status is seen where it travels, in the trailers.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use super::cut_off::CutOff;
use super::methods::{Method, Record};
use super::wording;
use crate::metrics;

/// What the client sends.
pub(in crate::rpc) struct RequestBody {
    inner: Body,
    framing: Framing,
    method: &'static Method,
}

impl RequestBody {
    pub(super) fn new(inner: Body, method: &'static Method) -> RequestBody {
        RequestBody {
            inner,
            framing: Framing::default(),
            method,
        }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            let messages = self.framing.follow(data);
            self.method.received.inc_by(messages);
            metrics::NETWORK_CLIENT_GRPC_RECEIVED_BYTES_TOTAL.inc_by(data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// What the server sends, up to the trailers.
pub struct ResponseBody {
    inner: Body,
    /// Gone when the call has ended. Dropped before, the client has gone.
    watched: Option<Watched>,
}

/// A call that has not ended.
struct Watched {
    framing: Framing,
    record: Record,
    cut_off: Option<CutOff>,
}

impl ResponseBody {
    pub(super) fn new(inner: Body, record: Record, cut_off: Option<CutOff>) -> ResponseBody {
        ResponseBody {
            inner,
            watched: Some(Watched {
                framing: Framing::default(),
                record,
                cut_off,
            }),
        }
    }

    /// Passes on what it is given.
    pub(super) fn plain(inner: Body) -> ResponseBody {
        ResponseBody {
            inner,
            watched: None,
        }
    }

    fn pass(&mut self, mut frame: Frame<Bytes>) -> Frame<Bytes> {
        if let Some(data) = frame.data_ref() {
            if let Some(call) = &mut self.watched {
                let messages = call.framing.follow(data);
                call.record.count_sent(messages);
                metrics::NETWORK_CLIENT_GRPC_SENT_BYTES_TOTAL.inc_by(data.len() as u64);
            }
        } else if let Some(trailers) = frame.trailers_mut()
            && let Some(call) = self.watched.take()
        {
            let code = wording::final_code(trailers);
            call.record.finish(code.unwrap_or(Code::Unknown));
        }
        frame
    }

    fn finish(&mut self, code: Code) {
        if let Some(call) = self.watched.take() {
            call.record.finish(code);
        }
    }

    /// Ends the call from our side.
    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.inner = Body::empty();
        self.finish(status.code());
        let mut trailers = HeaderMap::new();
        // Fails only for metadata that are no valid headers; there are none.
        let _ = status.add_header(&mut trailers);
        Frame::trailers(trailers)
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(self.pass(frame)))),
            Poll::Ready(Some(Err(status))) => {
                self.finish(status.code());
                Poll::Ready(Some(Err(status)))
            }
            Poll::Ready(None) => {
                self.finish(Code::Unknown);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let watched = self.watched.as_mut();
                let Some(cut_off) = watched.and_then(|call| call.cut_off.as_mut()) else {
                    return Poll::Pending;
                };
                let Poll::Ready(refusal) = cut_off.as_mut().poll(cx) else {
                    return Poll::Pending;
                };
                Poll::Ready(Some(Ok(self.end(&refusal.into()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A flag, then the length of the message.
const PREFIX_BYTES: usize = 5;

/// Where in the sequence of messages a body's data are: each message is a flag
/// byte, a length (4 bytes, big-endian) and that many bytes.
#[derive(Debug, Default)]
struct Framing {
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of `prefix` that are there.
    prefix_len: usize,
    /// Bytes of the message still to come, once the prefix is whole.
    message_left: usize,
}

impl Framing {
    /// Takes the next piece of the body, however it is cut. Returns how many
    /// messages end in it.
    fn follow(&mut self, mut data: &[u8]) -> u64 {
        let mut messages = 0;
        while !data.is_empty() {
            if self.prefix_len < PREFIX_BYTES {
                let taken = data.len().min(PREFIX_BYTES - self.prefix_len);
                let (head, rest) = data.split_at(taken);
                self.prefix[self.prefix_len..][..taken].copy_from_slice(head);
                self.prefix_len += taken;
                data = rest;
                if self.prefix_len < PREFIX_BYTES {
                    break;
                }
                let [_, length @ ..] = self.prefix;
                self.message_left = u32::from_be_bytes(length) as usize;
            }
            let taken = data.len().min(self.message_left);
            data = &data[taken..];
            self.message_left -= taken;
            if self.message_left == 0 {
                messages += 1;
                self.prefix_len = 0;
            }
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let mut body = Vec::new();
        for length in [0_u32, 3, 700, 0, 1] {
            body.push(0);
            body.extend(length.to_be_bytes());
            body.extend(std::iter::repeat_n(7, length as usize));
        }
        for piece_bytes in [1, 2, 4, 5, 6, 100, body.len()] {
            let mut framing = Framing::default();
            let pieces = body.chunks(piece_bytes);
            let messages: u64 = pieces.map(|piece| framing.follow(piece)).sum();
            assert_eq!(messages, 5, "in pieces of {piece_bytes}");
        }
    }

    #[test]
    fn half_a_message_is_none() {
        let mut framing = Framing::default();
        assert_eq!(framing.follow(&[0, 0, 0, 0, 2, 9]), 0);
        assert_eq!(framing.follow(&[9]), 1);
    }
}
