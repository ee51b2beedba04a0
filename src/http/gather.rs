//! Answers of one connection that leave together.
//!
//! The HTTP/2 library writes each answer when its call has ended, often in two
//! pieces, and a write to a socket costs more than most calls. [`Gathered`]
//! keeps what is small for a moment: its connection is scheduled once more,
//! behind the calls that are ready to run, and what they answered goes out in
//! the same write. With one call at a time nothing is gained by waiting, so a
//! connection on which a wait was in vain does without for the next few
//! answers.
//!
//! Nothing is ever kept without the connection being scheduled: whoever polls
//! it calls [`Shared::settle`] after each poll. The stream below may keep bytes
//! too (TLS does, when the socket is full), and lets go of them only in another
//! write or in a flush: so every write is followed by flushes until one is done.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Pieces of at least this size are not worth a copy: they go out at once,
/// with all before them.
const LARGE_BYTES: usize = 4 << 10;

/// What is kept at most; then it is written whether or not more would come.
const MAX_KEPT_BYTES: usize = 32 << 10;

/// After a wait that brought nothing, so many writes are made without one.
const WRITES_WITHOUT_WAIT: u32 = 15;

/// A stream whose small writes are kept until [`Gathered::settle`].
pub(super) struct Gathered<S> {
    stream: S,
    kept: Vec<u8>,
    /// Bytes of `kept` that are written already.
    written: usize,
    /// The stream was written to and has not been flushed since.
    needs_flush: bool,
    wait: Wait,
}

/// Whether to wait for more before the next write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// Yes.
    Due,
    /// It is on; so many bytes were kept when it began.
    Begun { kept: usize },
    /// Not for so many writes.
    Futile { writes: u32 },
}

impl<S> Gathered<S> {
    pub(super) fn new(stream: S) -> Gathered<S> {
        Gathered {
            stream,
            kept: Vec::new(),
            written: 0,
            needs_flush: false,
            wait: Wait::Due,
        }
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// Writes what is kept, or has the task of `cx` come back for it if it
    /// `may_wait`. Where the socket is full, it wakes the task when there is room,
    /// and the next call goes on.
    fn settle(&mut self, may_wait: bool, cx: &mut Context<'_>) -> io::Result<()> {
        if self.kept.is_empty() {
            return done_or_later(self.flush(cx));
        }
        self.wait = match self.wait {
            Wait::Due if !may_wait => Wait::Due,
            Wait::Due => {
                self.wait = Wait::Begun {
                    kept: self.kept.len(),
                };
                // A task that wakes itself goes behind all that are ready.
                cx.waker().wake_by_ref();
                return Ok(());
            }
            Wait::Begun { kept } if self.kept.len() > kept => Wait::Due,
            Wait::Begun { .. } => Wait::Futile {
                writes: WRITES_WITHOUT_WAIT,
            },
            Wait::Futile { writes: 1 } => Wait::Due,
            Wait::Futile { writes } => Wait::Futile { writes: writes - 1 },
        };
        done_or_later(self.write_kept(cx))
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.needs_flush {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.needs_flush = polled.is_pending();
        polled
    }

    fn write_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.kept.len() {
            self.needs_flush = true;
            let rest = &self.kept[self.written..];
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => self.written += count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        self.kept.clear();
        self.written = 0;
        self.flush(cx)
    }

    /// Writes what is kept and `bytes` after it; answers how many of `bytes`.
    fn write_with_kept(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.needs_flush = true;
        loop {
            let kept = self.kept.len() - self.written;
            let polled = if kept == 0 {
                Pin::new(&mut self.stream).poll_write(cx, bytes)
            } else {
                let slices = [
                    IoSlice::new(&self.kept[self.written..]),
                    IoSlice::new(bytes),
                ];
                Pin::new(&mut self.stream).poll_write_vectored(cx, &slices)
            };
            let count = match polled {
                Poll::Ready(Ok(count)) if count > 0 => count,
                other => return other,
            };
            if count < kept {
                self.written += count;
                continue;
            }
            self.kept.clear();
            self.written = 0;
            if count > kept {
                return Poll::Ready(Ok(count - kept));
            }
        }
    }
}

/// What has to wait is no failure.
fn done_or_later(polled: Poll<io::Result<()>>) -> io::Result<()> {
    match polled {
        Poll::Ready(result) => result,
        Poll::Pending => Ok(()),
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.len() >= LARGE_BYTES || self.kept.len() + bytes.len() > MAX_KEPT_BYTES {
            return self.write_with_kept(cx, bytes);
        }
        self.kept.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    /// What is kept goes out soon enough, see [`Shared::settle`].
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.write_kept(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.stream).poll_shutdown(cx),
            other => other,
        }
    }
}

/// One stream in two hands: the HTTP side's, which reads and writes, and the
/// one that settles. Both belong to one task, so nobody ever waits.
pub(super) struct Shared<S>(Arc<Mutex<S>>);

impl<S> Shared<S> {
    pub(super) fn new(stream: S) -> Shared<S> {
        Shared(Arc::new(Mutex::new(stream)))
    }

    /// The other hand.
    pub(super) fn share(&self) -> Shared<S> {
        Shared(Arc::clone(&self.0))
    }

    /// See [`Gathered::settle`]; `gathered` finds it in the stream.
    pub(super) fn settle<T: AsyncWrite + Unpin>(
        &self,
        gathered: impl FnOnce(&mut S) -> &mut Gathered<T>,
        may_wait: bool,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        gathered(&mut self.0.lock()).settle(may_wait, cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Shared<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Shared<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock()).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Wakes {
        fn take(&self) -> usize {
            self.0.swap(0, Ordering::Relaxed)
        }
    }

    /// The tokio pipe of 64 KiB and what came out of it.
    struct Pipe {
        gathered: Gathered<tokio::io::DuplexStream>,
        other_end: tokio::io::DuplexStream,
        wakes: Arc<Wakes>,
        waker: Waker,
    }

    impl Pipe {
        fn new() -> Pipe {
            let (stream, other_end) = tokio::io::duplex(64 << 10);
            let wakes = Arc::new(Wakes::default());
            Pipe {
                gathered: Gathered::new(stream),
                other_end,
                waker: Waker::from(Arc::clone(&wakes)),
                wakes,
            }
        }

        fn write(&mut self, bytes: &[u8]) {
            let mut cx = Context::from_waker(&self.waker);
            let polled = Pin::new(&mut self.gathered).poll_write(&mut cx, bytes);
            assert!(matches!(polled, Poll::Ready(Ok(count)) if count == bytes.len()));
        }

        fn settle(&mut self) {
            let mut cx = Context::from_waker(&self.waker);
            self.gathered.settle(true, &mut cx).unwrap();
        }

        fn come_out(&mut self) -> Vec<u8> {
            let mut bytes = vec![0; 64 << 10];
            let mut buffer = ReadBuf::new(&mut bytes);
            let mut cx = Context::from_waker(Waker::noop());
            let _ = Pin::new(&mut self.other_end).poll_read(&mut cx, &mut buffer);
            buffer.filled().to_vec()
        }
    }

    #[test]
    fn what_comes_while_it_waits_goes_out_together() {
        let mut pipe = Pipe::new();
        pipe.write(b"one ");
        pipe.settle();
        assert_eq!(pipe.wakes.take(), 1, "it comes back");
        assert_eq!(pipe.come_out(), b"");
        pipe.write(b"two");
        pipe.settle();
        assert_eq!(pipe.come_out(), b"one two");
        pipe.settle();
        assert_eq!(pipe.wakes.take(), 0, "nothing is kept");
    }

    #[test]
    fn a_wait_in_vain_is_not_repeated_at_once() {
        let mut pipe = Pipe::new();
        pipe.write(b"1");
        pipe.settle();
        pipe.settle();
        assert_eq!((pipe.come_out(), pipe.wakes.take()), (b"1".to_vec(), 1));
        for _ in 0..WRITES_WITHOUT_WAIT {
            pipe.write(b"2");
            pipe.settle();
            assert_eq!((pipe.come_out(), pipe.wakes.take()), (b"2".to_vec(), 0));
        }
        pipe.write(b"3");
        pipe.settle();
        assert_eq!((pipe.come_out(), pipe.wakes.take()), (b"".to_vec(), 1));
    }

    #[test]
    fn large_pieces_keep_the_order() {
        let mut pipe = Pipe::new();
        pipe.write(b"small");
        pipe.write(&[7; LARGE_BYTES]);
        let mut expected = b"small".to_vec();
        expected.extend([7; LARGE_BYTES]);
        assert_eq!(pipe.come_out(), expected);
    }

    /// Takes all at once and passes it on only in a flush, as TLS does with what
    /// its socket has no room for.
    struct Holding {
        stream: tokio::io::DuplexStream,
        held: Vec<u8>,
    }

    impl AsyncWrite for Holding {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.held.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let this = self.get_mut();
            while !this.held.is_empty() {
                match Pin::new(&mut this.stream).poll_write(cx, &this.held) {
                    Poll::Ready(Ok(count)) => drop(this.held.drain(..count)),
                    other => return other.map_ok(drop),
                }
            }
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            unreachable!("nobody shuts down")
        }
    }

    #[tokio::test]
    async fn what_the_stream_holds_back_is_flushed_until_it_is_gone() {
        for size in [100, 2 * LARGE_BYTES] {
            let (stream, mut other_end) = tokio::io::duplex(64);
            let held = Vec::new();
            let mut gathered = Gathered::new(Holding { stream, held });
            let piece = vec![7; size];
            tokio::io::AsyncWriteExt::write_all(&mut gathered, &piece)
                .await
                .unwrap();
            let settling = std::future::poll_fn(|cx| {
                gathered.settle(true, cx).unwrap();
                Poll::<()>::Pending
            });
            let mut read = vec![0; size];
            tokio::select! {
                () = settling => unreachable!("it never ends"),
                result = other_end.read_exact(&mut read) => drop(result.unwrap()),
                () = tokio::time::sleep(std::time::Duration::from_secs(10)) => {}
            }
            assert!(read == piece, "{size} bytes");
        }
    }

    #[tokio::test]
    async fn a_full_pipe_keeps_the_rest_and_a_shutdown_writes_it() {
        let (stream, mut other_end) = tokio::io::duplex(10);
        let mut gathered = Gathered::new(stream);
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            other_end.read_to_end(&mut all).await.unwrap();
            all
        });
        let mut expected = Vec::new();
        for size in [3, 2 * LARGE_BYTES, 100, MAX_KEPT_BYTES - 50, 100, 1] {
            let piece: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            tokio::io::AsyncWriteExt::write_all(&mut gathered, &piece)
                .await
                .unwrap();
            expected.extend(piece);
        }
        tokio::io::AsyncWriteExt::shutdown(&mut gathered)
            .await
            .unwrap();
        drop(gathered);
        assert!(reader.await.unwrap() == expected);
    }
}
