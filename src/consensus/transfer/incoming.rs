//! The receiving end: another member's state on its way to the disk, and from
//! there into the machine.
//!
//! One state is received at a time. What has come of it stays when its call
//! breaks, and the next call for the same transfer goes on from there. Each
//! chunk is checked before it is written, each file is synced when it is
//! complete, and nothing is said to raft before everything is.
//!
//! A complete state waits for raft, which may have no use for it any more: it is
//! then replaced by a later one.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use raft::eraftpb::{Message, MessageType, Snapshot};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Status, Streaming};

use super::receiving::Receiving;
use super::{Key, remove_dir};
use crate::consensus::transport::{SnapshotReceiver, SnapshotReplies, wire};
use crate::consensus::{PeerInbox, SnapshotInstaller};
use crate::machine::Machine;
use crate::metrics;
use crate::proto::peer::snapshot_part::Part;
use crate::proto::peer::snapshot_reply::Reply;
use crate::proto::peer::{
    SnapshotChunk, SnapshotDone, SnapshotFile, SnapshotHeader, SnapshotPart, SnapshotReply,
    SnapshotResume,
};
use crate::storage::StorageError;

/// A transfer that has brought nothing for this long makes room for another:
/// longer than its sender waits between two attempts.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// Complete states that raft may still ask for. It asks for the last one, unless
/// a later one came while it was on its way to the apply thread.
const MAX_READY: usize = 2;

/// RocksDB makes files of 32 MB or more: this is far beyond any state.
const MAX_FILES: usize = 1 << 20;

/// How long raft's full inbox is waited for.
const INBOX_RETRY: Duration = Duration::from_millis(100);
const INBOX_RETRIES: usize = 50;

/// Receives the state of other members, and puts it in place. Cheap to clone.
#[derive(Clone)]
pub struct Incoming {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    inbox: PeerInbox,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    receiving: Option<Receiving>,
    /// Complete, and known to raft; the latest last.
    ready: Vec<Ready>,
    last_done: Option<Key>,
    last_call: u64,
    /// Bytes after which the disk is full, for tests.
    #[cfg(test)]
    space_bytes: Option<u64>,
}

struct Ready {
    key: Key,
    dir: PathBuf,
    /// For raft.
    message: Message,
}

/// Why a state was not received.
#[derive(Debug, Error)]
pub(super) enum ReceiveError {
    #[error("{0}")]
    Header(&'static str),
    #[error("file {0} of the state has no plain name")]
    Name(String),
    #[error("another state is being received")]
    Busy,
    #[error("another call has taken over")]
    TakenOver,
    #[error("chunk at {offset} of file {file}: {problem}")]
    Chunk {
        file: u32,
        offset: u64,
        problem: &'static str,
    },
    #[error("the call ended before everything was there")]
    Short,
    #[error("no room on the disk for the state")]
    NoSpace,
    #[error("writing the state: {0}")]
    Write(io::Error),
    #[error("raft has no room for a message")]
    InboxFull,
    #[error("{0}")]
    Call(Status),
}

impl From<io::Error> for ReceiveError {
    fn from(error: io::Error) -> ReceiveError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ReceiveError::NoSpace,
            _ => ReceiveError::Write(error),
        }
    }
}

impl ReceiveError {
    /// After these the transfer can go on where it is.
    fn is_passing(&self) -> bool {
        matches!(
            self,
            ReceiveError::Short
                | ReceiveError::Call(_)
                | ReceiveError::TakenOver
                | ReceiveError::InboxFull
        )
    }

    /// What the sender hears. `Aborted` and `Unavailable` are worth another
    /// attempt.
    fn to_status(&self) -> Status {
        let text = self.to_string();
        match self {
            ReceiveError::Header(_) | ReceiveError::Name(_) => Status::invalid_argument(text),
            ReceiveError::Busy | ReceiveError::NoSpace => Status::resource_exhausted(text),
            ReceiveError::TakenOver | ReceiveError::Short => Status::aborted(text),
            ReceiveError::Chunk { .. } => Status::data_loss(text),
            ReceiveError::Write(_) => Status::failed_precondition(text),
            ReceiveError::InboxFull => Status::unavailable(text),
            ReceiveError::Call(status) => status.clone(),
        }
    }
}

impl Incoming {
    pub(super) fn new(dir: PathBuf, inbox: PeerInbox) -> Incoming {
        Incoming {
            inner: Arc::new(Inner {
                dir,
                inbox,
                state: Mutex::default(),
            }),
        }
    }

    /// Answers a call of the member `from`.
    pub(super) fn answer<S>(&self, from: u64, parts: S) -> SnapshotReplies
    where
        S: Stream<Item = Result<SnapshotPart, Status>> + Send + Unpin + 'static,
    {
        // There are two replies at most.
        let (replies, receiver) = mpsc::channel(2);
        let incoming = self.clone();
        tokio::spawn(async move {
            let last = match incoming.take(from, parts, &replies).await {
                Ok(()) => Ok(reply(Reply::Done(SnapshotDone {}))),
                Err(error) => Err(error.to_status()),
            };
            // A sender that is gone will call again.
            let _ = replies.send(last).await;
        });
        Box::pin(ReceiverStream::new(receiver))
    }

    async fn take<S>(
        &self,
        from: u64,
        mut parts: S,
        replies: &mpsc::Sender<Result<SnapshotReply, Status>>,
    ) -> Result<(), ReceiveError>
    where
        S: Stream<Item = Result<SnapshotPart, Status>> + Send + Unpin + 'static,
    {
        let label = [format!("{from:x}")];
        let in_flight = metrics::NETWORK_SNAPSHOT_RECEIVE_INFLIGHTS_TOTAL.with_label_values(&label);
        in_flight.inc();
        let began = Instant::now();
        let taken = self.try_take(from, &mut parts, replies).await;
        in_flight.dec();
        let sender = format_args!("{from:x}");
        match &taken {
            Ok(()) => {
                let spent = began.elapsed();
                metrics::NETWORK_SNAPSHOT_RECEIVE_SUCCESS
                    .with_label_values(&label)
                    .inc();
                metrics::NETWORK_SNAPSHOT_RECEIVE_TOTAL_DURATION_SECONDS
                    .with_label_values(&label)
                    .observe(spent.as_secs_f64());
                metrics::SNAP_DB_SAVE_TOTAL_DURATION_SECONDS.observe(spent.as_secs_f64());
                tracing::info!(sender, ?spent, "received the state of a member");
            }
            Err(error) => {
                metrics::NETWORK_SNAPSHOT_RECEIVE_FAILURES
                    .with_label_values(&label)
                    .inc();
                tracing::warn!(sender, %error, "the state of a member was not received");
            }
        }
        taken
    }

    async fn try_take<S>(
        &self,
        from: u64,
        parts: &mut S,
        replies: &mpsc::Sender<Result<SnapshotReply, Status>>,
    ) -> Result<(), ReceiveError>
    where
        S: Stream<Item = Result<SnapshotPart, Status>> + Send + Unpin + 'static,
    {
        let Some(Part::Header(header)) = next(parts).await? else {
            return Err(ReceiveError::Header(
                "the call does not begin with a header",
            ));
        };
        let key = Key {
            from,
            number: header.transfer_id,
        };
        if self.inner.state.lock().last_done == Some(key) {
            return Ok(());
        }
        if let Some(message) = self.ready_message(key) {
            return self.tell_raft(key, message).await;
        }
        let message = check(key, &header)?;
        let incoming = self.clone();
        let (call, resume) = blocking(move || incoming.begin(key, &message, header.files)).await?;
        // Room for two, and this is the first.
        let _ = replies.try_send(Ok(reply(Reply::Resume(resume))));
        let mut is_complete = self.is_complete(key, call)?;
        while !is_complete {
            let chunk = match next(parts).await? {
                Some(Part::Chunk(chunk)) => chunk,
                Some(Part::Header(_)) => return Err(ReceiveError::Header("a second header")),
                None => return Err(ReceiveError::Short),
            };
            let incoming = self.clone();
            is_complete = blocking(move || incoming.store(key, call, &chunk)).await?;
        }
        let incoming = self.clone();
        let message = blocking(move || incoming.finish(key, call)).await?;
        self.tell_raft(key, message).await
    }

    /// Raft's message about a state that is complete.
    fn ready_message(&self, key: Key) -> Option<Message> {
        let state = self.inner.state.lock();
        let ready = state.ready.iter().find(|ready| ready.key == key)?;
        Some(ready.message.clone())
    }

    /// Makes room for a transfer, or finds what has come of it already. Returns
    /// the call's number and where to go on.
    fn begin(
        &self,
        key: Key,
        message: &Message,
        files: Vec<SnapshotFile>,
    ) -> Result<(u64, SnapshotResume), ReceiveError> {
        let mut state = self.inner.state.lock();
        state.last_call += 1;
        let call = state.last_call;
        if let Some(receiving) = &mut state.receiving {
            if receiving.key == key && receiving.files == files {
                receiving.call = call;
                receiving.touched_at = Instant::now();
                return Ok((call, receiving.position()));
            }
            let is_newer = message.term > receiving.message.term;
            if !is_newer && receiving.touched_at.elapsed() < IDLE_LIMIT {
                return Err(ReceiveError::Busy);
            }
        }
        if let Some(abandoned) = state.receiving.take() {
            remove_dir(&abandoned.dir)?;
        }
        let dir = self
            .inner
            .dir
            .join(format!("{:x}-{}", key.from, key.number));
        remove_dir(&dir)?;
        fs::create_dir_all(&dir)?;
        let receiving = Receiving::begin(key, call, message.clone(), files, dir)?;
        let position = receiving.position();
        state.receiving = Some(receiving);
        Ok((call, position))
    }

    fn is_complete(&self, key: Key, call: u64) -> Result<bool, ReceiveError> {
        let mut state = self.inner.state.lock();
        Ok(state.receiving(key, call)?.is_complete())
    }

    /// Checks and writes a chunk; answers whether it was the last. After an
    /// error that will not pass, nothing of the transfer is kept.
    fn store(&self, key: Key, call: u64, chunk: &SnapshotChunk) -> Result<bool, ReceiveError> {
        let mut state = self.inner.state.lock();
        #[cfg(test)]
        let space_bytes = state.space_bytes;
        let receiving = state.receiving(key, call)?;
        #[cfg(test)]
        let stored = match space_bytes {
            Some(space_bytes) if receiving.bytes_stored() >= space_bytes => {
                Err(io::Error::from(io::ErrorKind::StorageFull).into())
            }
            _ => receiving.store(chunk),
        };
        #[cfg(not(test))]
        let stored = receiving.store(chunk);
        if let Err(error) = &stored
            && !error.is_passing()
            && let Some(failed) = state.receiving.take()
        {
            // The next start removes what stays.
            let _ = remove_dir(&failed.dir);
        }
        stored
    }

    /// Makes the whole durable and keeps it for raft. Returns raft's message.
    fn finish(&self, key: Key, call: u64) -> Result<Message, ReceiveError> {
        let mut state = self.inner.state.lock();
        let receiving = state.receiving(key, call)?;
        let began = Instant::now();
        sync_dir(&receiving.dir)?;
        sync_dir(&self.inner.dir)?;
        metrics::SNAP_DB_FSYNC_DURATION_SECONDS.observe(began.elapsed().as_secs_f64());
        let (message, dir) = (receiving.message.clone(), receiving.dir.clone());
        state.receiving = None;
        state.ready.push(Ready {
            key,
            dir,
            message: message.clone(),
        });
        while state.ready.len() > MAX_READY {
            let oldest = state.ready.remove(0);
            let _ = remove_dir(&oldest.dir);
        }
        Ok(message)
    }

    async fn tell_raft(&self, key: Key, message: Message) -> Result<(), ReceiveError> {
        for _ in 0..INBOX_RETRIES {
            if self.inner.inbox.step(message.clone()).is_ok() {
                self.inner.state.lock().last_done = Some(key);
                return Ok(());
            }
            tokio::time::sleep(INBOX_RETRY).await;
        }
        Err(ReceiveError::InboxFull)
    }

    #[cfg(test)]
    pub(super) fn bytes_stored(&self) -> Option<u64> {
        let state = self.inner.state.lock();
        state.receiving.as_ref().map(Receiving::bytes_stored)
    }

    #[cfg(test)]
    pub(super) fn fill_disk_after(&self, bytes: u64) {
        self.inner.state.lock().space_bytes = Some(bytes);
    }
}

#[tonic::async_trait]
impl SnapshotReceiver for Incoming {
    async fn receive(
        &self,
        from: u64,
        parts: Streaming<SnapshotPart>,
    ) -> Result<SnapshotReplies, Status> {
        Ok(self.answer(from, parts))
    }
}

impl SnapshotInstaller for Incoming {
    fn install(&mut self, machine: &mut Machine, snapshot: &Snapshot) -> Result<(), StorageError> {
        let key = Key::from_bytes(&snapshot.data);
        let dir = {
            let state = self.inner.state.lock();
            let found = state.ready.iter().find(|ready| Some(ready.key) == key);
            found.map(|ready| ready.dir.clone())
        };
        let Some(dir) = dir else {
            return Err(StorageError::Files {
                path: self.inner.dir.clone(),
                problem: "the state that raft was told of is not there".to_owned(),
            });
        };
        let metadata = snapshot.get_metadata();
        machine.install(&dir, (metadata.index, metadata.term))?;
        let mut state = self.inner.state.lock();
        let at = state.ready.iter().position(|ready| Some(ready.key) == key);
        // Those before it are older states.
        for used in state.ready.drain(..at.map_or(0, |at| at + 1)) {
            let _ = remove_dir(&used.dir);
        }
        Ok(())
    }
}

impl State {
    /// The transfer, while it is this call's.
    fn receiving(&mut self, key: Key, call: u64) -> Result<&mut Receiving, ReceiveError> {
        self.receiving
            .as_mut()
            .filter(|receiving| receiving.key == key && receiving.call == call)
            .ok_or(ReceiveError::TakenOver)
    }
}

/// What raft will be told, if the header makes sense.
fn check(key: Key, header: &SnapshotHeader) -> Result<Message, ReceiveError> {
    let message = header.message.clone();
    let message = message.ok_or(ReceiveError::Header("there is no message of raft"))?;
    let message = wire::from_wire(message)
        .map_err(|_| ReceiveError::Header("the message of raft is none"))?;
    let snapshot = message.get_snapshot();
    if message.get_msg_type() != MessageType::MsgSnapshot || snapshot.get_metadata().index == 0 {
        return Err(ReceiveError::Header(
            "the message of raft is about no state",
        ));
    }
    if message.from != key.from || Key::from_bytes(&snapshot.data) != Some(key) {
        return Err(ReceiveError::Header(
            "the message of raft is about another state",
        ));
    }
    if header.files.is_empty() || header.files.len() > MAX_FILES {
        return Err(ReceiveError::Header("no state has so many files"));
    }
    let mut names: Vec<&str> = header.files.iter().map(|file| &*file.name).collect();
    if let Some(name) = names.iter().find(|name| !is_plain(name)) {
        return Err(ReceiveError::Name(name.escape_default().to_string()));
    }
    names.sort_unstable();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(ReceiveError::Header("two files of the state have one name"));
    }
    let mut bytes = header.files.iter().map(|file| file.bytes);
    bytes
        .try_fold(0_u64, u64::checked_add)
        .ok_or(ReceiveError::Header("the sizes of the files make no sense"))?;
    Ok(message)
}

/// A name that stays in its folder, as RocksDB's files have.
fn is_plain(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=255).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_allowed)
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn reply(reply: Reply) -> SnapshotReply {
    SnapshotReply { reply: Some(reply) }
}

/// The next part; `None` at the end of the call.
async fn next<S>(parts: &mut S) -> Result<Option<Part>, ReceiveError>
where
    S: Stream<Item = Result<SnapshotPart, Status>> + Unpin,
{
    match parts.next().await {
        None => Ok(None),
        Some(Err(status)) => Err(ReceiveError::Call(status)),
        Some(Ok(SnapshotPart { part: Some(part) })) => Ok(Some(part)),
        Some(Ok(SnapshotPart { part: None })) => Err(ReceiveError::Header("an empty part")),
    }
}

/// Runs what waits for the disk, off the threads of the runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReceiveError> + Send + 'static,
) -> Result<T, ReceiveError> {
    let done = tokio::task::spawn_blocking(work).await;
    // A panic was reported by the panic hook.
    done.unwrap_or_else(|error| Err(ReceiveError::Write(error.into())))
}
