//! Messages on their way to one peer, bounded in number and bytes.
//!
//! A peer has two lanes. What raft's clock depends on (heartbeats, votes,
//! answers, reads) goes over the fast one; appends and proposals, which may be
//! megabytes, over the other. Within a lane order is kept, so the word to take
//! over goes behind the appends that whoever takes over is to know. A full lane
//! drops what comes: raft makes up for it, and the sender is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BytesMut;
use prost::Message as _;
use raft::eraftpb::{Message, MessageType};
use thiserror::Error;
use tokio::sync::mpsc;
use tonic::Status;

use super::wire::to_wire;
use crate::proto::peer::{RaftFrame, RaftMessage};

/// Messages that wait in a lane: raft has at most 512 appends under way to one
/// member; the rest is small.
const MAX_MESSAGES: usize = 4096;

/// And their bytes: as much as the receiver's inbox holds.
const MAX_BYTES: usize = 64 << 20;

/// A frame takes messages until it is about so large.
const FRAME_BYTES: usize = 1 << 20;

/// A message above this goes in pieces of a frame each.
const WHOLE_BYTES: usize = 2 << 20;

/// What a receiver takes for a frame: one that was almost full and got a large
/// message, and some for what is around them.
pub(super) const MAX_FRAME_BYTES: usize = FRAME_BYTES + WHOLE_BYTES + (1 << 20);

/// The largest message that is put together from pieces. It holds at least one
/// entry, so this bounds what `--max-request-bytes` can be used for.
const MAX_MESSAGE_BYTES: usize = 512 << 20;

/// What an entry costs besides its data, about.
const ENTRY_OVERHEAD: usize = 64;

pub(super) struct Sender {
    messages: mpsc::Sender<Message>,
    bytes: Arc<AtomicUsize>,
}

pub(super) struct Receiver {
    messages: mpsc::Receiver<Message>,
    bytes: Arc<AtomicUsize>,
}

pub(super) fn lane() -> (Sender, Receiver) {
    let (sender, receiver) = mpsc::channel(MAX_MESSAGES);
    let bytes = Arc::new(AtomicUsize::new(0));
    let sender = Sender {
        messages: sender,
        bytes: bytes.clone(),
    };
    let receiver = Receiver {
        messages: receiver,
        bytes,
    };
    (sender, receiver)
}

/// Whether a message goes over the bulk lane.
pub(super) fn is_bulk(message: &Message) -> bool {
    matches!(
        message.msg_type,
        MessageType::MsgAppend | MessageType::MsgPropose | MessageType::MsgTimeoutNow
    )
}

fn weight(message: &Message) -> usize {
    let entries = message.entries.iter();
    let entries = entries.map(|entry| entry.data.len() + entry.context.len() + ENTRY_OVERHEAD);
    entries.sum::<usize>() + message.context.len() + ENTRY_OVERHEAD
}

impl Sender {
    /// Whether there was room.
    pub(super) fn push(&self, message: Message) -> bool {
        let weight = weight(&message);
        let before = self.bytes.fetch_add(weight, Ordering::Relaxed);
        // A message that is larger than the limit gets through alone.
        let has_room = before == 0 || before + weight <= MAX_BYTES;
        if has_room && self.messages.try_send(message).is_ok() {
            return true;
        }
        self.bytes.fetch_sub(weight, Ordering::Relaxed);
        false
    }
}

impl Receiver {
    /// Waits for messages and puts them into frames: one, or the pieces of one
    /// that is too large. None when nothing will come any more.
    pub(super) async fn next(&mut self) -> Option<Vec<RaftFrame>> {
        let mut next = Some(self.messages.recv().await?);
        let mut frames = Vec::new();
        let mut frame = RaftFrame::default();
        let mut frame_bytes = 0;
        while let Some(message) = next {
            self.bytes.fetch_sub(weight(&message), Ordering::Relaxed);
            let message = to_wire(message);
            let bytes = message.encoded_len();
            if bytes > WHOLE_BYTES {
                // Whatever came before it is sent before it.
                frames.push(std::mem::take(&mut frame));
                frames.extend(pieces(&message));
                return Some(frames);
            }
            frame.messages.push(message);
            frame_bytes += bytes;
            if frame_bytes >= FRAME_BYTES {
                break;
            }
            next = self.messages.try_recv().ok();
        }
        frames.push(frame);
        Some(frames)
    }

    /// Throws away what waits.
    pub(super) fn clear(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            self.bytes.fetch_sub(weight(&message), Ordering::Relaxed);
        }
    }
}

fn pieces(message: &RaftMessage) -> Vec<RaftFrame> {
    let mut rest = bytes::Bytes::from(message.encode_to_vec());
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(FRAME_BYTES));
        frames.push(RaftFrame {
            messages: Vec::new(),
            piece,
            piece_rest: rest.len() as u64,
        });
    }
    frames
}

/// Why pieces do not make a message.
#[derive(Debug, Error)]
pub(super) enum BadPieces {
    #[error("a message of {0} bytes, more than any member sends")]
    TooLarge(u64),
    #[error("pieces of different messages")]
    Mixed,
    #[error(transparent)]
    Decode(#[from] prost::DecodeError),
}

impl From<BadPieces> for Status {
    fn from(bad: BadPieces) -> Status {
        Status::invalid_argument(bad.to_string())
    }
}

/// Puts messages together again on the receiving side.
#[derive(Default)]
pub(super) struct Pieces {
    start: BytesMut,
    /// How many bytes of the message have not come yet.
    rest: u64,
}

impl Pieces {
    /// All whole messages of a frame.
    pub(super) fn take(&mut self, frame: RaftFrame) -> Result<Vec<RaftMessage>, BadPieces> {
        let mut messages = frame.messages;
        let is_within = !self.start.is_empty();
        if frame.piece.is_empty() {
            return if is_within {
                Err(BadPieces::Mixed)
            } else {
                Ok(messages)
            };
        }
        let length = frame.piece.len() as u64;
        let total = length.saturating_add(frame.piece_rest);
        if is_within && total != self.rest {
            return Err(BadPieces::Mixed);
        }
        if !is_within && total > MAX_MESSAGE_BYTES as u64 {
            return Err(BadPieces::TooLarge(total));
        }
        // Grows as bytes come, whatever was announced.
        self.start.extend_from_slice(&frame.piece);
        self.rest = frame.piece_rest;
        if self.rest == 0 {
            messages.push(RaftMessage::decode(self.start.split().freeze())?);
        }
        Ok(messages)
    }
}
