//! Bodies of answers in slices, so that calls of one connection take turns.
//!
//! The HTTP/2 library hands the connection's window out in the order in which
//! streams ask, to each as much as it asks for: a body given whole asks for all
//! of it, and an event of a watch waits until every large answer before it is
//! through. A [`Sliced`] body asks for one frame at a time, and how much of it
//! is under way at once is the connection's setting (`max_send_buf_size`).

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// A frame's worth: smaller ones would cost more headers, larger ones would be
/// cut by the library anyway.
const SLICE_BYTES: usize = 16 << 10;

/// A body whose data come in pieces of at most [`SLICE_BYTES`].
pub(super) struct Sliced<B> {
    body: B,
    /// What is left of a larger piece.
    rest: Bytes,
}

impl<B> Sliced<B> {
    pub(super) fn new(body: B) -> Sliced<B> {
        Sliced {
            body,
            rest: Bytes::new(),
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Sliced<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(data) if data.len() > SLICE_BYTES => self.rest = data,
                Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let len = self.rest.len().min(SLICE_BYTES);
        let slice = self.rest.split_to(len);
        Poll::Ready(Some(Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let body = self.body.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = body.upper().and_then(|upper| upper.checked_add(rest)) {
            hint.set_upper(upper);
        }
        hint.set_lower(body.lower().saturating_add(rest));
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    #[tokio::test]
    async fn a_body_stays_the_same_and_comes_in_slices() {
        for len in [0, 1, SLICE_BYTES, SLICE_BYTES + 1, 5 * SLICE_BYTES] {
            let bytes: Bytes = (0..len).map(|n| (n % 251) as u8).collect();
            let trailers = http::HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                http::HeaderValue::from_static("0"),
            )]);
            let with = trailers.clone();
            let whole = Full::new(bytes.clone()).with_trailers(async move { Some(Ok(with)) });
            let mut body = Sliced::new(Box::pin(whole));
            let mut seen = Vec::new();
            let mut ended_with = None;
            while let Some(frame) = body.frame().await {
                match frame.unwrap().into_data() {
                    Ok(slice) => {
                        assert!(slice.len() <= SLICE_BYTES);
                        assert!(ended_with.is_none());
                        seen.extend_from_slice(&slice);
                    }
                    Err(frame) => ended_with = frame.into_trailers().ok(),
                }
            }
            assert!(seen == bytes, "{len} bytes");
            assert_eq!(ended_with, Some(trailers));
        }
    }

    #[tokio::test]
    async fn what_is_left_counts() {
        let len = 3 * SLICE_BYTES + 7;
        let mut body = Sliced::new(Full::new(Bytes::from(vec![1; len])));
        assert_eq!(body.size_hint().exact(), Some(len as u64));
        let mut left = len;
        while let Some(frame) = body.frame().await {
            left -= frame.unwrap().into_data().unwrap().len();
            assert_eq!(body.size_hint().exact(), Some(left as u64));
            assert_eq!(body.is_end_stream(), left == 0);
        }
        assert_eq!(left, 0);
    }
}
