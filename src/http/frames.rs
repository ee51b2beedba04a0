//! The frames of HTTP/2 (RFC 9113, sections 4 and 6), as far as the wrappers
//! around a connection look at them: `pings` counts some, `authority` rewrites
//! some. Everything else about them is the HTTP library's.

/// What a client sends first on HTTP/2.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const FRAME_HEADER_LEN: usize = 9;

/// The largest payload of a frame that nobody has asked to be larger.
pub(super) const MAX_PAYLOAD_LEN: usize = 16 << 10;

/// Kinds of frames.
pub(super) const DATA: u8 = 0x0;
pub(super) const HEADERS: u8 = 0x1;
pub(super) const RST_STREAM: u8 = 0x3;
pub(super) const PING: u8 = 0x6;
pub(super) const GOAWAY: u8 = 0x7;
pub(super) const CONTINUATION: u8 = 0x9;

/// Flags of frames.
pub(super) const ACK: u8 = 0x1;
pub(super) const END_STREAM: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const PRIORITY: u8 = 0x20;

/// A frame without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload_len: usize,
}

impl Frame {
    pub(super) fn read(header: [u8; FRAME_HEADER_LEN]) -> Frame {
        let [a, b, c, kind, flags, stream @ ..] = header;
        Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
            payload_len: u32::from_be_bytes([0, a, b, c]) as usize,
        }
    }

    pub(super) fn header(&self) -> [u8; FRAME_HEADER_LEN] {
        debug_assert!(self.payload_len < 1 << 24, "a length has three bytes");
        let [_, a, b, c] = (self.payload_len as u32).to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A whole frame, for tests.
#[cfg(test)]
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let frame = Frame {
        kind,
        flags,
        stream,
        payload_len: payload.len(),
    };
    [frame.header().as_slice(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_written() {
        let frame = Frame {
            kind: HEADERS,
            flags: END_HEADERS,
            stream: 0x7fff_fffe,
            payload_len: 0x12_3456,
        };
        assert_eq!(
            frame.header(),
            [0x12, 0x34, 0x56, 1, 4, 0x7f, 0xff, 0xff, 0xfe]
        );
        assert_eq!(Frame::read(frame.header()), frame);
        let reserved_bit = [0, 0, 0, PING, ACK, 0x80, 0, 0, 1];
        assert_eq!(Frame::read(reserved_bit).stream, 1);
    }
}
