//! Where in its sequence of messages a body is. Each message is a flag byte, a
//! length (4 bytes, big-endian) and that many bytes; how the bytes are cut into
//! pieces on the way means nothing.

/// A flag, then the length of the message.
pub(super) const PREFIX_BYTES: usize = 5;

#[derive(Debug, Default)]
pub(super) struct Framing {
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of `prefix` that are there.
    prefix_len: usize,
    /// Bytes of the message still to come, once the prefix is whole.
    message_left: usize,
}

/// What a piece of the body has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The piece is used up.
    More,
    /// A prefix is whole.
    Prefix { flag: u8, length: usize },
    /// A message is whole.
    Message,
}

impl Framing {
    /// Takes bytes from the front of `data`, up to the next thing worth
    /// knowing, and says how many. A message without bytes ends in none, so
    /// this is to be called until it wants more.
    pub(super) fn step(&mut self, data: &[u8]) -> (usize, Step) {
        if self.prefix_len < PREFIX_BYTES {
            let taken = data.len().min(PREFIX_BYTES - self.prefix_len);
            self.prefix[self.prefix_len..][..taken].copy_from_slice(&data[..taken]);
            self.prefix_len += taken;
            if self.prefix_len < PREFIX_BYTES {
                return (taken, Step::More);
            }
            let [flag, length @ ..] = self.prefix;
            let length = u32::from_be_bytes(length) as usize;
            self.message_left = length;
            return (taken, Step::Prefix { flag, length });
        }
        let taken = data.len().min(self.message_left);
        self.message_left -= taken;
        if self.message_left > 0 {
            return (taken, Step::More);
        }
        self.prefix_len = 0;
        (taken, Step::Message)
    }

    /// Takes the next piece of the body. Returns how many messages end in it.
    pub(super) fn follow(&mut self, mut data: &[u8]) -> u64 {
        let mut messages = 0;
        loop {
            let (taken, step) = self.step(data);
            data = &data[taken..];
            match step {
                Step::More => return messages,
                Step::Prefix { .. } => {}
                Step::Message => messages += 1,
            }
        }
    }

    /// The prefix as far as it is there, while it is not whole.
    pub(super) fn begun_prefix(&self) -> &[u8] {
        if self.prefix_len < PREFIX_BYTES {
            &self.prefix[..self.prefix_len]
        } else {
            &[]
        }
    }

    /// Whether a prefix is whole, and its message is not.
    pub(super) fn is_in_message(&self) -> bool {
        self.prefix_len == PREFIX_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let mut body = Vec::new();
        for length in [0_u32, 3, 700, 0, 1] {
            body.push(0);
            body.extend(length.to_be_bytes());
            body.extend(std::iter::repeat_n(7, length as usize));
        }
        for piece_bytes in [1, 2, 4, 5, 6, 100, body.len()] {
            let mut framing = Framing::default();
            let pieces = body.chunks(piece_bytes);
            let messages: u64 = pieces.map(|piece| framing.follow(piece)).sum();
            assert_eq!(messages, 5, "in pieces of {piece_bytes}");
        }
    }

    #[test]
    fn half_a_message_is_none() {
        let mut framing = Framing::default();
        assert_eq!(framing.follow(&[0, 0, 0]), 0);
        assert_eq!(framing.begun_prefix(), [0, 0, 0]);
        assert!(!framing.is_in_message());
        assert_eq!(framing.follow(&[0, 2, 9]), 0);
        assert!(framing.is_in_message());
        assert_eq!(framing.follow(&[9]), 1);
        assert!(!framing.is_in_message());
    }
}
