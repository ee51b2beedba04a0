//! HTTP/2 by hand: what no client library would send, or in an order that none
//! lets one choose.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, FRAME_HEADER_LEN, Frame, GOAWAY, HEADERS,
    MAX_PAYLOAD_LEN, PREFACE, RST_STREAM, frame,
};

const SETTINGS: u8 = 0x4;
const WINDOW_UPDATE: u8 = 0x8;
const INITIAL_WINDOW_SIZE: u16 = 0x4;

/// Longer than any answer takes.
const LIMIT: Duration = Duration::from_secs(20);

/// Fields of a request, each as a literal of HPACK that enters no table.
pub(super) fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            push_length(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

fn push_length(block: &mut Vec<u8>, len: usize) {
    if len < 127 {
        return block.push(len as u8);
    }
    block.push(127);
    let mut rest = len - 127;
    while rest > 127 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

/// A request's fields with nothing special about them.
pub(super) fn get<'a>(path: &'a str, authority: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        (":method", "GET"),
        (":scheme", "http"),
        (":path", path),
        (":authority", authority),
    ]
}

/// HEADERS, and CONTINUATION where one frame does not hold the block.
pub(super) fn headers(stream: u32, block: &[u8], flags: u8) -> Vec<u8> {
    let mut pieces = block.chunks(MAX_PAYLOAD_LEN).peekable();
    let (mut bytes, mut kind, mut flags) = (Vec::new(), HEADERS, flags);
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            flags |= END_HEADERS;
        }
        bytes.extend(frame(kind, flags, stream, piece));
        (kind, flags) = (CONTINUATION, 0);
    }
    bytes
}

/// A client that has sent its preface.
pub(super) struct Client {
    stream: TcpStream,
}

/// What one stream was answered with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Body(String),
    Reset,
    GoAway(String),
}

impl Client {
    /// Each stream may bring `window_bytes` before a WINDOW_UPDATE.
    pub(super) async fn connect(address: std::net::SocketAddr, window_bytes: u32) -> Client {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut setting = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        setting.extend(window_bytes.to_be_bytes());
        let mut hello = PREFACE.to_vec();
        hello.extend(frame(SETTINGS, 0, 0, &setting));
        stream.write_all(&hello).await.unwrap();
        Client { stream }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The client may get so much more on the whole connection.
    pub(super) async fn open_window(&mut self, bytes: u32) {
        let update = frame(WINDOW_UPDATE, 0, 0, &bytes.to_be_bytes());
        self.send(&update).await;
    }

    /// The next frame; the server's settings are acknowledged in passing.
    pub(super) async fn frame(&mut self) -> (Frame, Vec<u8>) {
        tokio::time::timeout(LIMIT, self.next_frame())
            .await
            .expect("the server says something")
    }

    async fn next_frame(&mut self) -> (Frame, Vec<u8>) {
        loop {
            let mut header = [0; FRAME_HEADER_LEN];
            self.stream.read_exact(&mut header).await.unwrap();
            let head = Frame::read(header);
            let mut payload = vec![0; head.payload_len];
            self.stream.read_exact(&mut payload).await.unwrap();
            match head.kind {
                SETTINGS if !head.has(ACK) => {
                    let ack = frame(SETTINGS, ACK, 0, &[]);
                    self.stream.write_all(&ack).await.unwrap();
                }
                SETTINGS | WINDOW_UPDATE => {}
                _ => return (head, payload),
            }
        }
    }

    /// Reads until `stream` is answered.
    pub(super) async fn answer(&mut self, stream: u32) -> Answer {
        let mut body = Vec::new();
        loop {
            let (head, payload) = self.frame().await;
            match head.kind {
                GOAWAY => {
                    return Answer::GoAway(String::from_utf8_lossy(&payload[8..]).into_owned());
                }
                RST_STREAM if head.stream == stream => return Answer::Reset,
                DATA if head.stream == stream => body.extend_from_slice(&payload),
                _ => {}
            }
            if head.stream == stream && head.has(END_STREAM) {
                return Answer::Body(String::from_utf8_lossy(&body).into_owned());
            }
        }
    }

    /// Asks for `path`, and reads the answer.
    pub(super) async fn get(&mut self, stream: u32, path: &str, authority: &str) -> Answer {
        let block = fields(&get(path, authority));
        self.send(&headers(stream, &block, END_STREAM)).await;
        self.answer(stream).await
    }
}
