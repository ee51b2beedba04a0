//! What the server sends, watched in passing: messages and bytes are counted,
//! and the final status is seen where it travels, in the trailers.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use super::cut_off::CutOff;
use super::framing::Framing;
use super::methods::Record;
use super::wording;
use crate::metrics;

/// The messages, up to the trailers.
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
            let code = wording::final_code(trailers, call.record.kind());
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
