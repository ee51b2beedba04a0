//! One connection, from its first byte to its end, whatever it speaks.
//!
//! HTTP/1 or HTTP/2 is settled by the first bytes, and hyper does the protocol.
//! What it does not do is done by wrappers around the stream, from the socket up:
//!
//! ```text
//! hyper
//!   Shared        lets this file at the stream that hyper owns
//!   Guarded       counts pings and sends away who sends too many   (pings)
//!   Gathered      small answers leave in one write                 (gather)
//!   AnyAuthority  requests with a malformed `:authority` are served (authority)
//! TLS, or the socket
//! ```

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::authority::AnyAuthority;
use super::gather::{Gathered, Shared};
use super::listener::{DRAIN_LIMIT, Settings};
use super::pings::Guarded;

/// How long a client may take to send the headers of an HTTP/1 request, as
/// etcd has it.
const HEADER_LIMIT: Duration = Duration::from_secs(5 * 60);

/// The headers of a request, or a gRPC call's metadata, all names and values.
/// What Go's HTTP/1 takes; of gRPC's it takes 16 MB, which nobody sends, and a
/// call holds its metadata until it ends.
const MAX_HEADER_BYTES: usize = 1 << 20;

/// Lines in the head of an HTTP/1 request. The library reserves 64 bytes for
/// each while it reads one.
const MAX_HEADER_LINES: usize = 4096;

/// Streams that clients have opened and reset again before they were looked
/// at, per connection. The library's 20 is meant for browsers; a gRPC client
/// that cancels a burst of calls is no attacker.
const MAX_PENDING_RESETS: usize = 1000;

/// What a client may send on one stream before it is read.
///
/// The library ends a connection whose unread small frames (under 256 bytes)
/// fall short of 256 bytes by more than half of [`CONNECTION_WINDOW_BYTES`] in
/// sum. The two numbers are chosen so that one stream cannot get there by the
/// smallest message that is ever streamed, a keep-alive of a lease, which is a
/// frame of 16 bytes: flow control stops it before. 65,536 of them fit here, and
/// come to 240 bytes each of the 16 MiB there are.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// What a client may send on all streams before it is read: the bound on what
/// one connection can make the process hold, besides its headers.
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

/// How much of one answer waits in a connection's queue at most. More would let
/// one large answer claim more of the client's window than others get a turn for;
/// less would have a list of a few hundred keys written in several rounds.
const MAX_QUEUED_BYTES: usize = 128 << 10;

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How the connections of a listener are served.
pub(super) struct Protocol {
    builder: auto::Builder<TokioExecutor>,
    min_ping_interval: Duration,
}

impl Protocol {
    pub(super) fn new(settings: &Settings) -> Protocol {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_LIMIT)
            .max_headers(MAX_HEADER_LINES)
            .max_buf_size(MAX_HEADER_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .max_send_buf_size(MAX_QUEUED_BYTES)
            .max_concurrent_streams(settings.max_concurrent_streams)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .keep_alive_interval(settings.ping_interval)
            .keep_alive_timeout(settings.ping_timeout);
        Protocol {
            builder,
            min_ping_interval: settings.min_ping_interval,
        }
    }

    /// Serves one connection to its end. Once the server stops, calls under way
    /// may take [`DRAIN_LIMIT`].
    pub(super) async fn serve<S, H, B>(
        &self,
        stream: S,
        peer: &str,
        service: H,
        shutdown: &CancellationToken,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        H: hyper::service::Service<
                Request<Incoming>,
                Response = Response<B>,
                Error = Infallible,
                Future: Send + 'static,
            >,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let stream = AnyAuthority::new(stream, MAX_HEADER_BYTES);
        let io = Shared::new(Guarded::new(Gathered::new(stream), self.min_ping_interval));
        let settling = io.share();
        let connection = self.builder.serve_connection(TokioIo::new(io), service);
        let mut connection = pin!(connection);
        let result = tokio::select! {
            result = poll_fn(|cx| poll_and_settle(connection.as_mut(), &settling, cx)) => result,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                let drained = poll_fn(|cx| poll_and_settle(connection.as_mut(), &settling, cx));
                match tokio::time::timeout(DRAIN_LIMIT, drained).await {
                    Ok(result) => result,
                    Err(_) => {
                        info!(peer, "closed a connection that had calls running");
                        return;
                    }
                }
            }
        };
        if let Err(error) = result {
            debug!(peer, error, "a connection broke");
        }
    }
}

/// Polls a connection, and then sees to what it has written to `stream`.
fn poll_and_settle<S: AsyncWrite + Unpin>(
    connection: Pin<&mut impl Future<Output = Result<(), BoxError>>>,
    stream: &Shared<Guarded<Gathered<S>>>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), BoxError>> {
    let polled = connection.poll(cx);
    match stream.settle(Guarded::stream, polled.is_pending(), cx) {
        Err(error) if polled.is_pending() => Poll::Ready(Err(error.into())),
        _ => polled,
    }
}
