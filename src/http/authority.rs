//! Requests whose `:authority` is none by the letter of RFC 3986.
//!
//! gRPC clients send as authority what they were told to connect to:
//! `#initially=[127.0.0.1:2379]` (clientv3 3.5.0), `127.0.0.1:1,127.0.0.1:2`
//! and `%2Frun%2Fetcd.sock` (gRPC's C core), `/run/etcd.sock`, `svc%2Fkv`, or
//! nothing. etcd serves all of them and looks at none. The HTTP/2 library here
//! refuses the request before anybody sees it, so this wrapper steps in
//! between: it looks at the first header block of a connection. If the
//! authority there is one, or absent, it looks no further, and the connection
//! pays one string. If not, every header block of that connection is decoded
//! and written anew, with [`STAND_IN`] where the authority was.
//!
//! One look is enough because a gRPC connection has one authority. Whatever
//! breaks the rules of HTTP/2 in another way goes on as it came: to refuse it
//! is the library's business.

use std::borrow::Cow;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use http::uri::Authority;
use loona_hpack::Decoder;
use loona_hpack::huffman::HuffmanDecoder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::debug;

use super::frames::{
    CONTINUATION, END_HEADERS, END_STREAM, FRAME_HEADER_LEN, Frame, HEADERS, MAX_PAYLOAD_LEN,
    PADDED, PREFACE, PRIORITY,
};

/// Takes the place of what is no authority. A reserved name (RFC 2606), so
/// that no list of host names lets it in.
const STAND_IN: &[u8] = b"malformed.invalid";

const AUTHORITY: &[u8] = b":authority";

/// Where `:authority` without a value stands in HPACK's static table.
const AUTHORITY_INDEX: usize = 1;

/// What clients may keep in HPACK's dynamic table unless told otherwise, which
/// they are not.
const TABLE_BYTES: usize = 4096;

/// Length of the fields in HEADERS that [`PRIORITY`] announces.
const PRIORITY_LEN: usize = 5;

/// What is read at a time while there is something to look for.
const READ_BYTES: usize = 8 << 10;

/// A stream on which every request's authority can be read.
pub(super) struct AnyAuthority<S> {
    stream: S,
    /// Gone when there is nothing more to look for.
    rewriter: Option<Box<Rewriter>>,
}

impl<S> AnyAuthority<S> {
    /// Header blocks of more than `max_header_bytes` are not rewritten, which
    /// ends a connection that needs it.
    pub(super) fn new(stream: S, max_header_bytes: usize) -> AnyAuthority<S> {
        AnyAuthority {
            stream,
            rewriter: Some(Box::new(Rewriter::new(max_header_bytes))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AnyAuthority<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let Some(rewriter) = &mut this.rewriter else {
                return Pin::new(&mut this.stream).poll_read(cx, buffer);
            };
            if rewriter.give(buffer) {
                return Poll::Ready(Ok(()));
            }
            if rewriter.is_done() {
                this.rewriter = None;
                continue;
            }
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            match read.filled() {
                [] => rewriter.give_up(),
                bytes => rewriter.feed(bytes),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What a connection's client sends, on its way to the HTTP library.
struct Rewriter {
    stage: Stage,
    /// What has come and was not looked at yet: less than a frame's header, or
    /// a part of a header block.
    input: BytesMut,
    /// What may be read.
    output: BytesMut,
    /// Bytes of a frame that nobody looks into which are still to come.
    passing: usize,
    /// The header block whose frames are coming.
    block: Option<Block>,
    max_header_bytes: usize,
}

enum Stage {
    /// HTTP/2 begins with its preface.
    Preface,
    FirstBlock,
    EveryBlock(Decoder<'static>),
    /// Everything goes on as it comes.
    Done,
}

/// A header block: HEADERS, and CONTINUATION until one says that it is the last.
struct Block {
    head: Frame,
    /// The fields that [`PRIORITY`] announces, or nothing.
    priority: Vec<u8>,
    /// The encoded fields.
    fields: Vec<u8>,
    /// The frames as they came.
    frames: BytesMut,
}

impl Rewriter {
    fn new(max_header_bytes: usize) -> Rewriter {
        Rewriter {
            stage: Stage::Preface,
            input: BytesMut::new(),
            output: BytesMut::new(),
            passing: 0,
            block: None,
            max_header_bytes,
        }
    }

    fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done) && self.output.is_empty()
    }

    /// Moves what may be read into `buffer`; false if that is nothing.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let len = self.output.len().min(buffer.remaining());
        buffer.put_slice(&self.output[..len]);
        self.output.advance(len);
        len > 0
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        while self.step() {}
    }

    /// Lets all that is held go on as it came, and all that follows.
    fn give_up(&mut self) {
        if let Some(block) = self.block.take() {
            self.output.extend_from_slice(&block.frames);
        }
        self.output.extend_from_slice(&self.input);
        self.input.clear();
        self.stage = Stage::Done;
    }

    /// One step further in the input; false if that takes more of it.
    fn step(&mut self) -> bool {
        match self.stage {
            Stage::Preface => self.pass_preface(),
            Stage::FirstBlock | Stage::EveryBlock(_) => self.pass_frame(),
            Stage::Done => {
                self.output.unsplit(self.input.split());
                false
            }
        }
    }

    fn pass_preface(&mut self) -> bool {
        let len = self.input.len().min(PREFACE.len());
        if self.input[..len] != PREFACE[..len] {
            self.give_up();
        } else if len == PREFACE.len() {
            self.output.extend_from_slice(&self.input.split_to(len));
            self.stage = Stage::FirstBlock;
        } else {
            return false;
        }
        true
    }

    fn pass_frame(&mut self) -> bool {
        if self.passing > 0 {
            let len = self.passing.min(self.input.len());
            self.output.extend_from_slice(&self.input.split_to(len));
            self.passing -= len;
            return len > 0;
        }
        let Some(header) = self.input.first_chunk::<FRAME_HEADER_LEN>() else {
            return false;
        };
        let frame = Frame::read(*header);
        let frame_len = FRAME_HEADER_LEN + frame.payload_len;
        let is_expected = (frame.kind == CONTINUATION) == self.block.is_some();
        if !is_expected || frame.payload_len > MAX_PAYLOAD_LEN && is_of_block(frame.kind) {
            self.give_up();
            return true;
        }
        if !is_of_block(frame.kind) {
            self.passing = frame_len;
            return true;
        }
        if self.input.len() < frame_len {
            return false;
        }
        let bytes = self.input.split_to(frame_len);
        self.note_block(frame, &bytes);
        true
    }

    /// Takes one frame of a header block.
    fn note_block(&mut self, frame: Frame, bytes: &[u8]) {
        let block = self.block.get_or_insert_with(|| Block {
            head: frame,
            priority: Vec::new(),
            fields: Vec::new(),
            frames: BytesMut::new(),
        });
        block.frames.extend_from_slice(bytes);
        let Some((priority, fields)) = contents(frame, &bytes[FRAME_HEADER_LEN..]) else {
            return self.give_up();
        };
        block.priority.extend_from_slice(priority);
        block.fields.extend_from_slice(fields);
        if block.fields.len() > self.max_header_bytes {
            self.give_up();
        } else if frame.has(END_HEADERS) {
            self.finish_block();
        }
    }

    fn finish_block(&mut self) {
        let Some(block) = &self.block else { return };
        if matches!(self.stage, Stage::FirstBlock) {
            let authority = authority(&block.fields).filter(|text| !is_authority(text));
            let Some(authority) = authority.map(|text| String::from_utf8_lossy(&text).into_owned())
            else {
                return self.give_up();
            };
            debug!(authority, "the requests of a connection name no host");
            let mut decoder = Decoder::new();
            decoder.set_max_allowed_table_size(TABLE_BYTES);
            self.stage = Stage::EveryBlock(decoder);
        }
        let Stage::EveryBlock(decoder) = &mut self.stage else {
            return;
        };
        match rewrite(decoder, &block.fields, self.max_header_bytes) {
            Some(fields) => {
                block.write(&fields, &mut self.output);
                self.block = None;
            }
            None => self.give_up(),
        }
    }
}

impl Block {
    /// The frames of this block with other fields.
    fn write(&self, fields: &[u8], output: &mut BytesMut) {
        let payload = [self.priority.as_slice(), fields].concat();
        // Not even an empty block is without a frame.
        let mut rest = payload.as_slice();
        let mut kind = HEADERS;
        let mut flags = self.head.flags & (END_STREAM | PRIORITY);
        loop {
            let (piece, after) = rest.split_at(rest.len().min(MAX_PAYLOAD_LEN));
            if after.is_empty() {
                flags |= END_HEADERS;
            }
            let frame = Frame {
                kind,
                flags,
                stream: self.head.stream,
                payload_len: piece.len(),
            };
            output.extend_from_slice(&frame.header());
            output.extend_from_slice(piece);
            if after.is_empty() {
                return;
            }
            (rest, kind, flags) = (after, CONTINUATION, 0);
        }
    }
}

fn is_of_block(kind: u8) -> bool {
    kind == HEADERS || kind == CONTINUATION
}

/// The priority fields and the encoded fields in the payload of a frame.
fn contents(frame: Frame, mut payload: &[u8]) -> Option<(&[u8], &[u8])> {
    if frame.kind == CONTINUATION {
        return Some((&[], payload));
    }
    if frame.has(PADDED) {
        let (padding, rest) = payload.split_first()?;
        payload = &rest[..rest.len().checked_sub(usize::from(*padding))?];
    }
    let priority_len = if frame.has(PRIORITY) { PRIORITY_LEN } else { 0 };
    payload.split_at_checked(priority_len)
}

/// The judgement of the HTTP library.
fn is_authority(text: &[u8]) -> bool {
    Authority::try_from(text).is_ok()
}

/// The fields of a header block, decoded and encoded again with another
/// authority. None if it cannot be decoded, or comes to more than `max_bytes`.
fn rewrite(decoder: &mut Decoder<'_>, fields: &[u8], max_bytes: usize) -> Option<Vec<u8>> {
    let mut encoded = Vec::new();
    let decoded = decoder.decode_with_cb(fields, |name, value| {
        // A few bytes can stand for thousands in the table.
        if encoded.len() > max_bytes {
            return;
        }
        let value = if *name == *AUTHORITY {
            Cow::Borrowed(STAND_IN)
        } else {
            value
        };
        // A literal that enters no table, so that the library's stays empty.
        encoded.push(0);
        push_string(&mut encoded, &name);
        push_string(&mut encoded, &value);
    });
    (decoded.is_ok() && encoded.len() <= max_bytes).then_some(encoded)
}

/// A string literal of HPACK (RFC 7541, section 5.2) that is not compressed.
fn push_string(encoded: &mut Vec<u8>, text: &[u8]) {
    const PREFIX: usize = 0x7f;
    if text.len() < PREFIX {
        encoded.push(text.len() as u8);
    } else {
        encoded.push(PREFIX as u8);
        let mut rest = text.len() - PREFIX;
        while rest > PREFIX {
            encoded.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        encoded.push(rest as u8);
    }
    encoded.extend_from_slice(text);
}

/// The authority in the first header block of a connection, whose dynamic
/// table is empty still. None if it has none, or cannot be read.
fn authority(mut block: &[u8]) -> Option<Cow<'_, [u8]>> {
    loop {
        let first = *block.first()?;
        if first & 0x80 != 0 {
            let (index, rest) = integer(block, 7)?;
            if index == AUTHORITY_INDEX {
                return Some(Cow::Borrowed(b""));
            }
            block = rest;
        } else if first & 0xe0 == 0x20 {
            // A new size of the dynamic table.
            (_, block) = integer(block, 5)?;
        } else {
            let prefix_bits = if first & 0x40 != 0 { 6 } else { 4 };
            let (index, rest) = integer(block, prefix_bits)?;
            let (name, rest) = match index {
                0 => string(rest).map(|(name, rest)| (Some(name), rest))?,
                _ => (None, rest),
            };
            let (value, rest) = string(rest)?;
            if index == AUTHORITY_INDEX || name.is_some_and(|name| name.is(AUTHORITY)) {
                return value.decode();
            }
            block = rest;
        }
    }
}

/// An integer of HPACK (RFC 7541, section 5.1) and what follows it.
fn integer(block: &[u8], prefix_bits: u32) -> Option<(usize, &[u8])> {
    let (first, mut rest) = block.split_first()?;
    let max = (1_usize << prefix_bits) - 1;
    let mut value = usize::from(*first) & max;
    if value < max {
        return Some((value, rest));
    }
    // Enough for any length that fits into a header block.
    for shift in [0, 7, 14, 21] {
        let (byte, after) = rest.split_first()?;
        rest = after;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, rest));
        }
    }
    None
}

/// A string of HPACK (RFC 7541, section 5.2) and what follows it.
fn string(block: &[u8]) -> Option<(Text<'_>, &[u8])> {
    let is_compressed = block.first()? & 0x80 != 0;
    let (len, rest) = integer(block, 7)?;
    let (bytes, rest) = rest.split_at_checked(len)?;
    let text = Text {
        bytes,
        is_compressed,
    };
    Some((text, rest))
}

/// A string as it was sent. Decoding builds a table, so it waits until asked for.
struct Text<'a> {
    bytes: &'a [u8],
    is_compressed: bool,
}

impl<'a> Text<'a> {
    fn is(&self, text: &[u8]) -> bool {
        self.decode().is_some_and(|decoded| *decoded == *text)
    }

    fn decode(&self) -> Option<Cow<'a, [u8]>> {
        if !self.is_compressed {
            return Some(Cow::Borrowed(self.bytes));
        }
        let decoded = HuffmanDecoder::new().decode(self.bytes).ok()?;
        Some(Cow::Owned(decoded))
    }
}

#[cfg(test)]
mod tests;
