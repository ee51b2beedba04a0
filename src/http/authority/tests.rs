//! Header blocks in and out, however they are cut. That requests with such
//! authorities are served is shown in `http::tests::streams`.

use loona_hpack::Encoder;
use proptest::prelude::*;

use super::super::frames::{DATA, PING, frame};
use super::*;

const MAX_BYTES: usize = 100_000;

/// What the library gets of `bytes` that come in pieces of `step`.
fn pass(bytes: &[u8], step: usize) -> Vec<u8> {
    let mut rewriter = Rewriter::new(MAX_BYTES);
    let mut passed = Vec::new();
    let mut take = |rewriter: &mut Rewriter| {
        let mut space = [0; 512];
        loop {
            let mut buffer = ReadBuf::new(&mut space);
            if !rewriter.give(&mut buffer) {
                return;
            }
            passed.extend_from_slice(buffer.filled());
        }
    };
    for piece in bytes.chunks(step) {
        rewriter.feed(piece);
        take(&mut rewriter);
    }
    rewriter.give_up();
    take(&mut rewriter);
    assert!(rewriter.is_done());
    passed
}

/// The preface, and then `frames`.
fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE, frames.concat().as_slice()].concat()
}

/// The fields of every header block in what `pass` has returned.
fn fields_of(passed: &[u8]) -> Vec<Vec<(String, String)>> {
    let mut rest = passed.strip_prefix(PREFACE).unwrap();
    let mut decoder = Decoder::new();
    let mut blocks = Vec::new();
    let mut block = Vec::new();
    while let Some((header, after)) = rest.split_first_chunk() {
        let frame = Frame::read(*header);
        let (payload, after) = after.split_at(frame.payload_len);
        rest = after;
        if !is_of_block(frame.kind) {
            continue;
        }
        let (_, fields) = contents(frame, payload).unwrap();
        block.extend_from_slice(fields);
        if frame.has(END_HEADERS) {
            let text = |bytes| String::from_utf8(bytes).unwrap();
            let fields = decoder.decode(&std::mem::take(&mut block)).unwrap();
            let fields = fields
                .into_iter()
                .map(|(name, value)| (text(name), text(value)));
            blocks.push(fields.collect());
        }
    }
    blocks
}

fn request<'a>(authority: &'a str, extra: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = vec![
        (":method", "POST"),
        (":path", "/a"),
        (":authority", authority),
    ];
    fields.extend(extra);
    fields
}

fn encode(encoder: &mut Encoder<'_>, fields: &[(&str, &str)]) -> Vec<u8> {
    encoder.encode(
        fields
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes())),
    )
}

#[test]
fn what_has_an_authority_passes_unchanged() {
    let mut encoder = Encoder::new();
    let first = encode(&mut encoder, &request("127.0.0.1:2379", &[]));
    let other = encode(&mut encoder, &request("x y", &[]));
    let bytes = connection(&[
        frame(HEADERS, END_HEADERS, 1, &first),
        frame(DATA, END_STREAM, 1, b"data"),
        frame(HEADERS, END_HEADERS, 3, &other),
    ]);
    for step in [1, 2, 7, 100, bytes.len()] {
        assert!(pass(&bytes, step) == bytes, "pieces of {step}");
    }
}

#[test]
fn what_has_none_gets_one_in_every_block() {
    let mut encoder = Encoder::new();
    let name = "n".repeat(200);
    let first = encode(&mut encoder, &request("x y", &[("name", &name)]));
    let second = encode(&mut encoder, &request("x y", &[("name", &name)]));
    assert!(second.len() < first.len() / 2, "the table is in use");
    let (head, tail) = first.split_at(5);
    let mut padded = vec![3];
    padded.extend([0, 0, 0, 0, 9]);
    padded.extend(&second);
    padded.extend([0; 3]);
    let bytes = connection(&[
        frame(PING, 0, 0, &[1; 8]),
        frame(HEADERS, 0, 1, head),
        frame(CONTINUATION, END_HEADERS, 1, tail),
        frame(DATA, END_STREAM, 1, b"data"),
        frame(
            HEADERS,
            END_HEADERS | END_STREAM | PADDED | PRIORITY,
            3,
            &padded,
        ),
    ]);
    let expected: Vec<(String, String)> = request("malformed.invalid", &[("name", &name)])
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    for step in [1, 2, 7, 100, bytes.len()] {
        let passed = pass(&bytes, step);
        assert_eq!(fields_of(&passed), [expected.clone(), expected.clone()]);
        let ping = frame(PING, 0, 0, &[1; 8]);
        assert_eq!(passed[PREFACE.len()..][..ping.len()], ping);
        let data = frame(DATA, END_STREAM, 1, b"data");
        assert!(passed.windows(data.len()).any(|bytes| bytes == data));
    }
}

#[test]
fn long_blocks_are_cut_into_frames() {
    let value = "v".repeat(3 * MAX_PAYLOAD_LEN);
    let block = encode(&mut Encoder::new(), &request("x y", &[("name", &value)]));
    let mut frames = vec![frame(HEADERS, END_STREAM, 1, &[])];
    for piece in block.chunks(10_000) {
        frames.push(frame(CONTINUATION, 0, 1, piece));
    }
    frames.push(frame(CONTINUATION, END_HEADERS, 1, &[]));
    let passed = pass(&connection(&frames), 4096);
    assert_eq!(fields_of(&passed)[0][3].1, value);
}

#[test]
fn compressed_strings_are_read() {
    // RFC 7541, section C.4.1: `www.example.com`.
    let fine = [
        0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90,
        0xf4, 0xff,
    ];
    assert_eq!(authority(&fine).as_deref(), Some(&b"www.example.com"[..]));
    // `a b`, after a new size of the table.
    let bad = [0x3f, 0x01, 0x82, 0x41, 0x83, 0x1a, 0x91, 0xff];
    assert_eq!(authority(&bad).as_deref(), Some(&b"a b"[..]));
    let indexed = [0x81];
    assert_eq!(authority(&indexed).as_deref(), Some(&b""[..]));
    let absent = [0x82, 0x86, 0x84];
    assert_eq!(authority(&absent), None);
}

#[test]
fn what_is_too_much_or_broken_goes_on_as_it_came() {
    // One byte that stands for 4 KB, very often.
    let mut encoder = Encoder::new();
    let value = "v".repeat(4000);
    let mut bomb = encode(&mut encoder, &request("x y", &[("name", &value)]));
    let again = encode(&mut encoder, &[("name", &value)]);
    assert_eq!(again.len(), 1);
    bomb.resize(bomb.len() + 10_000, again[0]);
    let long = vec![0; MAX_BYTES + 1];
    let mut frames = vec![frame(HEADERS, 0, 1, &[])];
    frames.extend(
        long.chunks(MAX_PAYLOAD_LEN)
            .map(|piece| frame(CONTINUATION, 0, 1, piece)),
    );
    for frames in [
        vec![frame(HEADERS, END_HEADERS, 1, &bomb)],
        frames,
        vec![frame(HEADERS, END_HEADERS | PADDED, 1, &[9, 0])],
        vec![frame(HEADERS, 0, 1, &[0x82]), frame(PING, 0, 0, &[0; 8])],
        vec![frame(CONTINUATION, END_HEADERS, 1, &[0x82])],
        vec![frame(HEADERS, END_HEADERS, 1, &[0x41, 0x7f, 0xff])],
    ] {
        let bytes = connection(&frames);
        assert!(pass(&bytes, 1000) == bytes);
    }
    let other = b"GET / HTTP/1.1\r\n\r\n";
    assert_eq!(pass(other, 3), other);
}

proptest! {
    /// Nothing is lost, whatever comes: neither a panic nor a byte too few.
    #[test]
    fn any_bytes_pass(frames in prop::collection::vec(
        (0_u8..12, any::<u8>(), 0_u32..4, prop::collection::vec(any::<u8>(), 0..60)), 0..8),
        step in 1_usize..80,
    ) {
        let frames: Vec<Vec<u8>> = frames
            .iter()
            .map(|(kind, flags, stream, payload)| frame(*kind, *flags, *stream, payload))
            .collect();
        let bytes = connection(&frames);
        let passed = pass(&bytes, step);
        prop_assert!(passed.starts_with(PREFACE));
        prop_assert_eq!(&passed, &pass(&bytes, bytes.len()));
    }
}
