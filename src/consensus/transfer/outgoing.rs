//! The sending end: checkpoints of the state, and their way to those who need
//! them.
//!
//! Raft's question for a state must be answered at once, and a checkpoint takes
//! a flush. So the first question starts making one and is answered "not now";
//! raft asks again with the next heartbeat. One checkpoint serves all who ask
//! while it is young.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use raft::eraftpb::{Message, Snapshot, SnapshotMetadata};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::checkpoint::{Checkpoint, CheckpointError};
use super::pace::Pace;
use super::{CHUNK_BYTES, Calls, Key, Settings};
use crate::consensus::transport::{Peers, SnapshotOutbox, SnapshotReplies, wire};
use crate::consensus::{PeerInbox, SnapshotSource};
use crate::metrics;
use crate::proto::peer::snapshot_part::Part;
use crate::proto::peer::snapshot_reply::Reply;
use crate::proto::peer::{
    SnapshotChunk, SnapshotFile, SnapshotHeader, SnapshotPart, SnapshotReply, SnapshotResume,
};
use crate::storage::Engine;

/// A younger checkpoint is sent again rather than made anew, if the log still
/// has the entries after it.
const FRESH: Duration = Duration::from_secs(60);

/// A checkpoint that nobody has asked for this long goes, with what it keeps on
/// disk.
const KEEP_UNUSED: Duration = Duration::from_secs(30);

/// Checkpoints on disk: one that is still being sent and one that is fresh.
/// Each keeps the files alive that have been compacted away since.
const MAX_CHECKPOINTS: usize = 2;

/// After a checkpoint could not be made: raft asks ten times a second.
const MAKE_RETRY: Duration = Duration::from_secs(10);

/// Chunks that were read and wait for the connection.
const CHUNKS_AHEAD: usize = 4;

/// A connection that takes nothing, or a receiver that does not answer, for this
/// long counts as broken. Longer than the receiver's disk needs to sync a file.
const STALL_LIMIT: Duration = Duration::from_secs(20);

/// Without any progress for this long a transfer is given up. Raft asks again if
/// the peer is still there.
const RETRY_LIMIT: Duration = Duration::from_secs(60);
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Sends the state to other members. Cheap to clone.
#[derive(Clone)]
pub struct Outgoing {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    engine: Arc<Engine>,
    inbox: PeerInbox,
    runtime: Handle,
    pace: Pace,
    checkpoints: Arc<AtomicUsize>,
    state: Mutex<State>,
    calls: OnceLock<Box<dyn Calls>>,
    closing: CancellationToken,
}

#[derive(Default)]
struct State {
    is_making: bool,
    /// The last one made.
    latest: Option<Arc<Checkpoint>>,
    asked_at: Option<Instant>,
    failed_at: Option<Instant>,
    /// Those being sent, by receiver.
    sending: Vec<(u64, Arc<Checkpoint>)>,
    last_number: u64,
}

/// Why a receiver did not get the state.
#[derive(Debug, Error)]
enum SendError {
    #[error("this member stops")]
    Closing,
    #[error("there is no way to other members yet")]
    NotConnected,
    #[error("the checkpoint that raft was told of is gone")]
    Gone,
    #[error("reading the checkpoint: {0}")]
    Read(#[from] std::io::Error),
    /// The receiver said no, or the connection broke.
    #[error("{0}")]
    Call(#[from] Status),
    #[error("no answer within {} s", STALL_LIMIT.as_secs())]
    Stalled,
    #[error("the receiver wants to begin where there is nothing")]
    Resume,
}

impl SendError {
    /// Whether another attempt could do better: the connection broke, and the
    /// receiver has not refused.
    fn is_passing(&self) -> bool {
        match self {
            SendError::Stalled => true,
            SendError::Call(status) => matches!(
                status.code(),
                Code::Unavailable
                    | Code::Unknown
                    | Code::Internal
                    | Code::Cancelled
                    | Code::Aborted
                    | Code::DeadlineExceeded
            ),
            _ => false,
        }
    }
}

impl Outgoing {
    pub(super) fn new(
        settings: Settings,
        engine: Arc<Engine>,
        inbox: PeerInbox,
        runtime: Handle,
    ) -> Outgoing {
        let pace = Pace::new(settings.bytes_per_second);
        Outgoing {
            inner: Arc::new(Inner {
                settings,
                engine,
                inbox,
                runtime,
                pace,
                checkpoints: Arc::default(),
                state: Mutex::default(),
                calls: OnceLock::new(),
                closing: CancellationToken::new(),
            }),
        }
    }

    /// Tells by which way the members are reached. Once: the transport, which
    /// knows, is made with this as a part of it.
    pub fn connect(&self, peers: Peers) {
        self.call_by(Box::new(peers));
    }

    pub(super) fn call_by(&self, calls: Box<dyn Calls>) {
        // The first stays.
        let _ = self.inner.calls.set(calls);
    }

    /// Ends what is under way: the store is about to close.
    pub fn close(&self) {
        self.inner.closing.cancel();
    }

    async fn deliver(&self, message: Message) {
        let to = message.to;
        let label = [format!("{to:x}")];
        let in_flight = metrics::NETWORK_SNAPSHOT_SEND_INFLIGHTS_TOTAL.with_label_values(&label);
        in_flight.inc();
        let began = Instant::now();
        let sent = tokio::select! {
            sent = self.try_deliver(message) => sent,
            () = self.inner.closing.cancelled() => Err(SendError::Closing),
        };
        in_flight.dec();
        let receiver = format_args!("{to:x}");
        match &sent {
            Ok(checkpoint) => {
                metrics::NETWORK_SNAPSHOT_SEND_SUCCESS
                    .with_label_values(&label)
                    .inc();
                metrics::NETWORK_SNAPSHOT_SEND_TOTAL_DURATION_SECONDS
                    .with_label_values(&label)
                    .observe(began.elapsed().as_secs_f64());
                let (index, bytes, spent) =
                    (checkpoint.index(), checkpoint.bytes(), began.elapsed());
                tracing::info!(receiver, index, bytes, ?spent, "sent the state to a member");
            }
            Err(error) => {
                metrics::NETWORK_SNAPSHOT_SEND_FAILURES
                    .with_label_values(&label)
                    .inc();
                tracing::warn!(receiver, %error, "the state was not sent to a member");
            }
        }
        self.inner.inbox.snapshot_sent(to, sent.is_ok());
    }

    async fn try_deliver(&self, message: Message) -> Result<Arc<Checkpoint>, SendError> {
        let to = message.to;
        let calls = self.inner.calls.get().ok_or(SendError::NotConnected)?;
        let checkpoint = self.claim(&message).ok_or(SendError::Gone)?;
        let transfer = Transfer {
            header: SnapshotHeader {
                transfer_id: checkpoint.key.number,
                message: Some(wire::to_wire(message)),
                files: checkpoint.files.clone(),
            },
            checkpoint: checkpoint.clone(),
            pace: &self.inner.pace,
            to,
        };
        let sent = transfer.run(&**calls).await;
        let mut state = self.inner.state.lock();
        state
            .sending
            .retain(|(receiver, sending)| *receiver != to || !Arc::ptr_eq(sending, &checkpoint));
        sent.map(|()| checkpoint)
    }

    /// The checkpoint that a message of raft is about.
    fn claim(&self, message: &Message) -> Option<Arc<Checkpoint>> {
        let key = Key::from_bytes(&message.get_snapshot().data)?;
        let mut state = self.inner.state.lock();
        let checkpoint = state.latest.iter().find(|latest| latest.key == key)?;
        let checkpoint = Arc::clone(checkpoint);
        state.sending.push((message.to, checkpoint.clone()));
        Some(checkpoint)
    }

    /// Makes a checkpoint, off the threads of the runtime, and lets go of it
    /// when nobody wants it any more.
    fn start_making(&self, state: &mut State) {
        state.is_making = true;
        // Not used by an earlier process either: a receiver may still know the
        // transfer of that.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let millis = since_epoch.map_or(0, |time| time.as_millis() as u64);
        state.last_number = millis.max(state.last_number + 1);
        let key = Key {
            from: self.inner.settings.member_id,
            number: state.last_number,
        };
        let outgoing = self.clone();
        self.inner.runtime.spawn(async move {
            let inner = outgoing.inner.clone();
            let making = tokio::task::spawn_blocking(move || {
                let parent = &inner.settings.outgoing_dir;
                Checkpoint::make(&inner.engine, parent, key, &inner.checkpoints)
            });
            // A panic has been reported by the panic hook.
            outgoing.made(making.await.ok());
            let inner = Arc::downgrade(&outgoing.inner);
            // Not held while asleep: the store closes with the last who has it.
            drop(outgoing);
            loop {
                sleep(KEEP_UNUSED / 4).await;
                let Some(inner) = inner.upgrade() else { return };
                if !(Outgoing { inner }).is_wanted(key) {
                    return;
                }
            }
        });
    }

    fn made(&self, made: Option<Result<Checkpoint, CheckpointError>>) {
        let mut state = self.inner.state.lock();
        state.is_making = false;
        match made {
            Some(Ok(checkpoint)) => state.latest = Some(Arc::new(checkpoint)),
            Some(Err(error)) => {
                tracing::error!(%error, "no checkpoint of the state was made");
                state.failed_at = Some(Instant::now());
            }
            None => state.failed_at = Some(Instant::now()),
        }
    }

    /// Whether the checkpoint is still the latest and was asked for lately. Lets
    /// go of it if it was not.
    fn is_wanted(&self, key: Key) -> bool {
        let mut state = self.inner.state.lock();
        if state.latest.as_ref().is_none_or(|latest| latest.key != key) {
            return false;
        }
        let is_asked_for = state
            .asked_at
            .is_some_and(|asked_at| asked_at.elapsed() < KEEP_UNUSED);
        if !is_asked_for && state.sending.is_empty() {
            state.latest = None;
            return false;
        }
        true
    }
}

impl SnapshotOutbox for Outgoing {
    /// Sends a `MsgSnapshot` and the state it speaks of. Returns at once; raft
    /// hears through the inbox how it went.
    fn send(&mut self, message: Message) {
        let outgoing = self.clone();
        let runtime = &self.inner.runtime;
        runtime.spawn(async move { outgoing.deliver(message).await });
    }
}

impl SnapshotSource for Outgoing {
    fn offer(&self, to: u64, _: &SnapshotMetadata, truncated: u64) -> Option<Snapshot> {
        let mut state = self.inner.state.lock();
        state.asked_at = Some(Instant::now());
        if let Some(latest) = &state.latest {
            let is_fresh = latest.made_at.elapsed() < FRESH;
            // Raft takes no state from before its member was one.
            if is_fresh && latest.index() >= truncated && latest.is_of_member(to) {
                return Some(latest.snapshot());
            }
            let old = state.latest.take();
            // Its files go with it, and this is the drive thread.
            self.inner.runtime.spawn_blocking(move || drop(old));
        }
        let is_full = self.inner.checkpoints.load(Ordering::Relaxed) >= MAX_CHECKPOINTS;
        let has_failed = state.failed_at.is_some_and(|at| at.elapsed() < MAKE_RETRY);
        if !state.is_making && !is_full && !has_failed {
            self.start_making(&mut state);
        }
        None
    }
}

/// One receiver's transfer.
struct Transfer<'a> {
    header: SnapshotHeader,
    checkpoint: Arc<Checkpoint>,
    pace: &'a Pace,
    to: u64,
}

impl Transfer<'_> {
    /// Calls until the receiver has everything, refuses, or nothing moves any
    /// more.
    async fn run(&self, calls: &dyn Calls) -> Result<(), SendError> {
        let mut moved_at = Instant::now();
        loop {
            let mut has_moved = false;
            let error = match self.attempt(calls, &mut has_moved).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if has_moved {
                moved_at = Instant::now();
            }
            if !error.is_passing() || moved_at.elapsed() > RETRY_LIMIT {
                return Err(error);
            }
            let receiver = self.to;
            tracing::debug!(receiver, %error, "a transfer broke off and is taken up again");
            sleep(RETRY_INTERVAL).await;
        }
    }

    async fn attempt(&self, calls: &dyn Calls, has_moved: &mut bool) -> Result<(), SendError> {
        let (sender, parts) = mpsc::channel(CHUNKS_AHEAD);
        let header = SnapshotPart {
            part: Some(Part::Header(self.header.clone())),
        };
        // There is room: it is the first.
        let _ = sender.try_send(header);
        let mut replies = timeout(STALL_LIMIT, calls.snapshot(self.to, parts))
            .await
            .map_err(|_| SendError::Stalled)??;
        let resume = match next(&mut replies).await? {
            Some(SnapshotReply {
                reply: Some(Reply::Resume(resume)),
            }) => resume,
            Some(SnapshotReply {
                reply: Some(Reply::Done(_)),
            }) => return Ok(()),
            _ => return Err(Status::unavailable("the receiver has ended the call").into()),
        };
        self.check(&resume)?;
        tokio::select! {
            // A refusal in the middle comes as the reply; it says more than the
            // closed channel that it leaves behind.
            biased;
            reply = replies.next() => return ended(reply),
            sent = self.send_chunks(sender, resume, has_moved) => sent?,
        }
        match next(&mut replies).await? {
            Some(SnapshotReply {
                reply: Some(Reply::Done(_)),
            }) => Ok(()),
            _ => Err(Status::unavailable("the receiver has ended the call").into()),
        }
    }

    fn check(&self, resume: &SnapshotResume) -> Result<(), SendError> {
        let files = &self.checkpoint.files;
        let is_there = match files.get(resume.file as usize) {
            Some(file) => resume.offset <= file.bytes,
            None => resume.file as usize == files.len() && resume.offset == 0,
        };
        is_there.then_some(()).ok_or(SendError::Resume)
    }

    async fn send_chunks(
        &self,
        sender: mpsc::Sender<SnapshotPart>,
        resume: SnapshotResume,
        has_moved: &mut bool,
    ) -> Result<(), SendError> {
        let first = resume.file as usize;
        for (file, SnapshotFile { bytes, .. }) in
            self.checkpoint.files.iter().enumerate().skip(first)
        {
            let mut offset = if file == first { resume.offset } else { 0 };
            while offset < *bytes {
                let len = usize::try_from(bytes - offset).unwrap_or(CHUNK_BYTES);
                let len = len.min(CHUNK_BYTES);
                self.pace.wait(len).await;
                let part = self.read(file, offset, len).await?;
                match timeout(STALL_LIMIT, sender.send(part)).await {
                    Ok(Ok(())) => *has_moved = true,
                    Ok(Err(_)) => {
                        // The call has ended. Its reply says why, and ends this.
                        sleep(STALL_LIMIT).await;
                        return Err(SendError::Stalled);
                    }
                    Err(_) => return Err(SendError::Stalled),
                }
                offset += len as u64;
            }
        }
        Ok(())
    }

    async fn read(&self, file: usize, offset: u64, len: usize) -> Result<SnapshotPart, SendError> {
        let checkpoint = self.checkpoint.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let data = checkpoint.read(file, offset, len)?;
            Ok(SnapshotChunk {
                file: u32::try_from(file).expect("a state has fewer files"),
                offset,
                crc32c: crc32c::crc32c(&data),
                data: data.into(),
            })
        });
        let chunk = reading.await.unwrap_or_else(|error| Err(error.into()));
        Ok(SnapshotPart {
            part: Some(Part::Chunk(chunk.map_err(SendError::Read)?)),
        })
    }
}

/// The next reply; `None` at the end of the call.
async fn next(replies: &mut SnapshotReplies) -> Result<Option<SnapshotReply>, SendError> {
    match timeout(STALL_LIMIT, replies.next()).await {
        Ok(Some(reply)) => Ok(Some(reply?)),
        Ok(None) => Ok(None),
        Err(_) => Err(SendError::Stalled),
    }
}

/// A reply while chunks are still being sent can only be the end.
fn ended(reply: Option<Result<SnapshotReply, Status>>) -> Result<(), SendError> {
    match reply {
        Some(Err(status)) => Err(status.into()),
        Some(Ok(SnapshotReply {
            reply: Some(Reply::Done(_)),
        })) => Ok(()),
        _ => Err(Status::unavailable("the receiver has ended the call").into()),
    }
}
