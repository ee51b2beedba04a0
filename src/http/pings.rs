//! Sends clients away that ping too often (LIM-8).
//!
//! gRPC servers in Go count the HTTP/2 pings of a client: too many too fast,
//! and the connection ends with GOAWAY `too_many_pings`, on which client
//! libraries lower their rate. The HTTP/2 library here answers pings by itself
//! and tells nobody, so this wrapper reads along: it finds the frames in both
//! directions (never their contents) and keeps the count.
//!
//! The rules are those of grpc-go's `http2_server.go`: a ping is a strike when
//! it follows the one before by less than the minimum, or, while no call
//! is open, by less than two hours; headers or data sent by the server wipe
//! the strikes; the third strike ends the connection.

use std::collections::HashSet;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::{
    ACK, DATA, END_STREAM, FRAME_HEADER_LEN, Frame, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM,
};

/// The reason that GOAWAY gives.
const ENHANCE_YOUR_CALM: u32 = 0xb;

/// Strikes that are forgiven.
const MAX_STRIKES: u32 = 2;

/// How far apart pings must be while no call is open.
const IDLE_INTERVAL: Duration = Duration::from_secs(2 * 60 * 60);

/// A connection's bytes, with its pings counted.
pub(super) struct Guarded<S> {
    stream: S,
    inbound: Frames,
    outbound: Frames,
    preface: Preface,
    pings: Pings,
    /// The client is to be sent away at the next read.
    is_expelled: bool,
}

/// Where the inbound bytes stand as to the preface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preface {
    /// So many bytes of it have come.
    Matched(usize),
    Complete,
    /// This is no HTTP/2; there is nothing to count.
    Absent,
}

impl<S> Guarded<S> {
    pub(super) fn new(stream: S, min_interval: Duration) -> Guarded<S> {
        Guarded {
            stream,
            inbound: Frames::default(),
            outbound: Frames::default(),
            preface: Preface::Matched(0),
            pings: Pings::new(min_interval),
            is_expelled: false,
        }
    }

    /// The connection itself.
    pub(super) fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    fn note_inbound(&mut self, mut bytes: &[u8]) {
        if let Preface::Matched(count) = self.preface {
            let len = bytes.len().min(PREFACE.len() - count);
            if bytes[..len] != PREFACE[count..count + len] {
                self.preface = Preface::Absent;
                return;
            }
            bytes = &bytes[len..];
            self.preface = match count + len {
                count if count == PREFACE.len() => Preface::Complete,
                count => Preface::Matched(count),
            };
        }
        if self.preface == Preface::Complete {
            let (pings, is_expelled) = (&mut self.pings, &mut self.is_expelled);
            self.inbound
                .feed(bytes, |frame| *is_expelled |= pings.note_received(frame));
        }
    }

    fn note_outbound(&mut self, bytes: &[u8]) {
        if self.preface == Preface::Complete {
            let pings = &mut self.pings;
            self.outbound.feed(bytes, |frame| pings.note_sent(frame));
        }
    }
}

impl<S: AsyncWrite + Unpin> Guarded<S> {
    /// Says why, if that can be said at once and without cutting a frame in
    /// two, and closes. The error makes the HTTP side drop the connection.
    fn expel(&mut self, cx: &mut Context<'_>) -> io::Error {
        if self.outbound.is_between_frames() {
            let farewell = goaway(self.pings.last_stream, b"too_many_pings");
            if let Poll::Ready(Ok(_)) = Pin::new(&mut self.stream).poll_write(cx, &farewell) {
                let _ = Pin::new(&mut self.stream).poll_flush(cx);
                let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
            }
        }
        io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "the client pinged too often",
        )
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_expelled {
            return Poll::Ready(Err(self.expel(cx)));
        }
        let filled = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => {
                self.note_inbound(&buffer.filled()[filled..]);
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = result {
            self.note_outbound(&bytes[..written]);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn goaway(last_stream: u32, reason: &[u8]) -> Vec<u8> {
    let frame = Frame {
        kind: GOAWAY,
        flags: 0,
        stream: 0,
        payload_len: 8 + reason.len(),
    };
    let mut bytes = frame.header().to_vec();
    bytes.extend_from_slice(&last_stream.to_be_bytes());
    bytes.extend_from_slice(&ENHANCE_YOUR_CALM.to_be_bytes());
    bytes.extend_from_slice(reason);
    bytes
}

/// Finds the headers of frames in bytes that come in pieces.
#[derive(Default)]
struct Frames {
    /// Bytes of the current frame's payload that are still to come.
    payload: usize,
    header: [u8; FRAME_HEADER_LEN],
    header_len: usize,
}

impl Frames {
    fn feed(&mut self, mut bytes: &[u8], mut visit: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            bytes = &bytes[skipped..];

            let len = (FRAME_HEADER_LEN - self.header_len).min(bytes.len());
            self.header[self.header_len..self.header_len + len].copy_from_slice(&bytes[..len]);
            self.header_len += len;
            bytes = &bytes[len..];

            if self.header_len == FRAME_HEADER_LEN {
                let frame = Frame::read(self.header);
                self.payload = frame.payload_len;
                self.header_len = 0;
                visit(frame);
            }
        }
    }

    fn is_between_frames(&self) -> bool {
        self.payload == 0 && self.header_len == 0
    }
}

/// The pings of one client, and what excuses them.
struct Pings {
    min_interval: Duration,
    strikes: u32,
    last: Option<Instant>,
    /// The server has sent headers or data since the last ping.
    is_excused: bool,
    open_streams: HashSet<u32>,
    /// The last stream the client has opened.
    last_stream: u32,
}

impl Pings {
    fn new(min_interval: Duration) -> Pings {
        Pings {
            min_interval,
            strikes: 0,
            last: None,
            is_excused: false,
            open_streams: HashSet::new(),
            last_stream: 0,
        }
    }

    /// Whether the client has gone too far with this frame.
    fn note_received(&mut self, frame: Frame) -> bool {
        match frame.kind {
            HEADERS if frame.stream > self.last_stream => {
                self.last_stream = frame.stream;
                self.open_streams.insert(frame.stream);
            }
            RST_STREAM => {
                self.open_streams.remove(&frame.stream);
            }
            PING if !frame.has(ACK) => return self.note_ping(Instant::now()),
            _ => {}
        }
        false
    }

    fn note_ping(&mut self, now: Instant) -> bool {
        let since_last = self.last.replace(now).map(|last| now.duration_since(last));
        if std::mem::take(&mut self.is_excused) {
            self.strikes = 0;
            return false;
        }
        let min_interval = if self.open_streams.is_empty() {
            IDLE_INTERVAL
        } else {
            self.min_interval
        };
        if since_last.is_some_and(|elapsed| elapsed < min_interval) {
            self.strikes += 1;
        }
        self.strikes > MAX_STRIKES
    }

    fn note_sent(&mut self, frame: Frame) {
        match frame.kind {
            HEADERS | DATA => {
                self.is_excused = true;
                if frame.has(END_STREAM) {
                    self.open_streams.remove(&frame.stream);
                }
            }
            RST_STREAM => {
                self.open_streams.remove(&frame.stream);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::frames::frame;
    use super::*;

    const MIN: Duration = Duration::from_secs(5);

    fn bare(kind: u8, flags: u8) -> Frame {
        Frame {
            kind,
            flags,
            stream: 1,
            payload_len: 0,
        }
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let mut bytes = frame(HEADERS, 4, 1, b"header block");
        bytes.extend(frame(PING, 0, 0, &[7; 8]));
        bytes.extend(frame(DATA, END_STREAM, 1, b""));
        for step in 1..bytes.len() {
            let mut frames = Frames::default();
            let mut found = Vec::new();
            for piece in bytes.chunks(step) {
                frames.feed(piece, |frame| {
                    found.push((frame.kind, frame.flags, frame.stream));
                });
            }
            let expected = [(HEADERS, 4, 1), (PING, 0, 0), (DATA, END_STREAM, 1)];
            assert_eq!(found, expected, "pieces of {step}");
            assert!(frames.is_between_frames());
        }
    }

    #[test]
    fn the_third_early_ping_is_one_too_many() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pings = Pings::new(MIN);
        pings.open_streams.insert(1);
        assert!(!pings.note_ping(at(0)), "the first has none before it");
        assert!(!pings.note_ping(at(1)));
        assert!(!pings.note_ping(at(2)));
        assert!(!pings.note_ping(at(8)), "no strike");
        assert!(pings.note_ping(at(9)));
    }

    #[test]
    fn what_the_server_sends_wipes_strikes() {
        let start = Instant::now();
        let mut pings = Pings::new(MIN);
        pings.note_received(bare(HEADERS, 0));
        for _ in 0..10 {
            assert!(!pings.note_ping(start));
            assert!(!pings.note_ping(start));
            pings.note_sent(bare(DATA, 0));
        }
    }

    #[test]
    fn without_calls_pings_must_be_hours_apart() {
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(minutes * 60);
        let mut pings = Pings::new(MIN);
        pings.note_received(bare(HEADERS, 0));
        pings.note_sent(bare(HEADERS, END_STREAM));
        assert!(!pings.note_ping(at(0)), "excused by the answer");
        assert!(!pings.note_ping(at(10)));
        assert!(!pings.note_ping(at(20)));
        assert!(pings.note_ping(at(30)));
    }

    #[tokio::test]
    async fn a_client_that_goes_too_far_is_told_why() {
        let (mut client, server) = tokio::io::duplex(1024);
        let mut server = Guarded::new(server, MIN);
        client.write_all(PREFACE).await.unwrap();
        for _ in 0..4 {
            client.write_all(&frame(PING, 0, 0, &[0; 8])).await.unwrap();
        }
        let mut sink = Vec::new();
        let error = server.read_to_end(&mut sink).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        drop(server);
        let mut farewell = Vec::new();
        client.read_to_end(&mut farewell).await.unwrap();
        assert_eq!(farewell, goaway(0, b"too_many_pings"));
        assert_eq!(
            farewell.len(),
            FRAME_HEADER_LEN + 8 + b"too_many_pings".len()
        );
    }

    #[tokio::test]
    async fn other_protocols_pass_unread() {
        let (mut client, server) = tokio::io::duplex(1024);
        let mut server = Guarded::new(server, MIN);
        client.write_all(b"PRI / HTTP/1.1\r\n\r\n").await.unwrap();
        drop(client);
        let mut text = Vec::new();
        server.read_to_end(&mut text).await.unwrap();
        assert_eq!(text, b"PRI / HTTP/1.1\r\n\r\n");
        assert_eq!(server.preface, Preface::Absent);
    }
}
