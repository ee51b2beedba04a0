//! Words of a script line: quoting, byte escapes, repetition, and the split of
//! a command's words into arguments and options. Also the way back: bytes as a
//! word, so that what a script prints can be typed into a script.
//!
//! A word is bytes. `\xff`, `\0`, `\n`, `\t`, `\\` and `\"` are escapes in bare
//! and quoted words alike; `""` is the empty word; `x*1000` (bare) is a
//! thousand times `x`.

use bytes::Bytes;

use crate::script::Mistake;

/// Longest value that is printed in full; the scripts' own keys and values are
/// far shorter, the limits' tests' are megabytes.
const LONGEST_SHOWN_BYTES: usize = 64;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Word {
    pub(crate) bytes: Bytes,
    /// A quoted word is never taken for an option.
    pub(crate) is_quoted: bool,
}

impl Word {
    pub(crate) fn text(&self) -> Result<&str, Mistake> {
        std::str::from_utf8(&self.bytes).map_err(|_| Mistake::new("this word must be text"))
    }

    pub(crate) fn number(&self) -> Result<i64, Mistake> {
        number(self.text()?)
    }
}

pub(crate) fn number(text: &str) -> Result<i64, Mistake> {
    text.parse()
        .map_err(|_| Mistake::new(format!("not a number: {text}")))
}

pub(crate) fn split(line: &str) -> Result<Vec<Word>, Mistake> {
    let mut words = Vec::new();
    let mut rest = line.trim().chars().peekable();
    while let Some(&first) = rest.peek() {
        if first == ' ' {
            rest.next();
            continue;
        }
        let (mut bytes, mut is_quoted, mut inside) = (Vec::new(), false, false);
        while let Some(&c) = rest.peek() {
            match c {
                ' ' if !inside => break,
                '"' => {
                    is_quoted |= bytes.is_empty();
                    inside = !inside;
                    rest.next();
                }
                '\\' => {
                    rest.next();
                    bytes.push(escaped(&mut rest)?);
                }
                _ => {
                    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    rest.next();
                }
            }
        }
        if inside {
            return Err(Mistake::new("a quote is not closed"));
        }
        words.push(Word {
            bytes: if is_quoted {
                bytes.into()
            } else {
                repeated(bytes)
            },
            is_quoted,
        });
    }
    Ok(words)
}

fn escaped(rest: &mut impl Iterator<Item = char>) -> Result<u8, Mistake> {
    let bad = || Mistake::new("unknown escape");
    Ok(match rest.next().ok_or_else(bad)? {
        '0' => 0,
        'n' => b'\n',
        't' => b'\t',
        '\\' => b'\\',
        '"' => b'"',
        'x' => {
            let high = rest.next().and_then(|c| c.to_digit(16)).ok_or_else(bad)?;
            let low = rest.next().and_then(|c| c.to_digit(16)).ok_or_else(bad)?;
            u8::try_from(high * 16 + low).expect("two hex digits are a byte")
        }
        _ => return Err(bad()),
    })
}

/// `x*3` is `xxx`; anything else is itself.
fn repeated(bytes: Vec<u8>) -> Bytes {
    let Some(star) = bytes.iter().rposition(|&b| b == b'*') else {
        return bytes.into();
    };
    let times = std::str::from_utf8(&bytes[star + 1..])
        .ok()
        .and_then(|t| t.parse::<usize>().ok());
    match times {
        Some(times) if star > 0 => bytes[..star].repeat(times).into(),
        _ => bytes.into(),
    }
}

/// Bytes as a word of a script.
pub(crate) fn shown(bytes: &[u8]) -> String {
    if bytes.len() > LONGEST_SHOWN_BYTES {
        return if bytes.iter().all(|&b| b == bytes[0]) && bytes[0].is_ascii_alphanumeric() {
            format!("{}*{}", char::from(bytes[0]), bytes.len())
        } else {
            format!(
                "<{} bytes, crc32c {:08x}>",
                bytes.len(),
                crc32c::crc32c(bytes)
            )
        };
    }
    let is_bare = |b: &u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'=' | b'*');
    if !bytes.is_empty() && bytes.iter().all(is_bare) {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let mut text = String::from("\"");
    for &b in bytes {
        match b {
            b'\n' => text.push_str("\\n"),
            b'"' => text.push_str("\\\""),
            b'\\' => text.push_str("\\\\"),
            b' ' => text.push(' '),
            b if b.is_ascii_graphic() => text.push(char::from(b)),
            b => text.push_str(&format!("\\x{b:02x}")),
        }
    }
    text.push('"');
    text
}

/// A command's words: arguments in order, options by name. Every option must
/// be taken, so that a misspelt one is a mistake and not silence.
pub(crate) struct Arguments {
    plain: std::vec::IntoIter<Word>,
    options: Vec<(String, Option<Word>)>,
}

impl Arguments {
    /// `names` are the options the command knows; a bare word `name` or
    /// `name=value` with one of them is an option, all else an argument.
    pub(crate) fn new(words: &[Word], names: &[&str]) -> Arguments {
        let (mut plain, mut options) = (Vec::new(), Vec::new());
        for word in words {
            match option(word, names) {
                Some(option) => options.push(option),
                None => plain.push(word.clone()),
            }
        }
        Arguments {
            plain: plain.into_iter(),
            options,
        }
    }

    pub(crate) fn next(&mut self) -> Option<Word> {
        self.plain.next()
    }

    pub(crate) fn need(&mut self, what: &str) -> Result<Word, Mistake> {
        self.next()
            .ok_or_else(|| Mistake::new(format!("missing: {what}")))
    }

    pub(crate) fn bytes(&mut self) -> Bytes {
        self.next().map(|word| word.bytes).unwrap_or_default()
    }

    /// Value of the option `name`, once; an option given several times is
    /// taken several times.
    pub(crate) fn option(&mut self, name: &str) -> Option<Option<Word>> {
        let at = self.options.iter().position(|(given, _)| given == name)?;
        Some(self.options.remove(at).1)
    }

    pub(crate) fn flag(&mut self, name: &str) -> bool {
        self.option(name).is_some()
    }

    pub(crate) fn value(&mut self, name: &str) -> Result<Option<Word>, Mistake> {
        match self.option(name) {
            None => Ok(None),
            Some(Some(word)) => Ok(Some(word)),
            Some(None) => Err(Mistake::new(format!("{name} needs a value"))),
        }
    }

    /// Number given with the option `name`, 0 without it, as protobuf has it.
    pub(crate) fn number(&mut self, name: &str) -> Result<i64, Mistake> {
        self.value(name)?.map_or(Ok(0), |word| word.number())
    }

    /// An enum option: one of `values` by position, or a plain number (which
    /// may lie outside the enum).
    pub(crate) fn choice(&mut self, name: &str, values: &[&str]) -> Result<i32, Mistake> {
        match self.value(name)? {
            None => Ok(0),
            Some(word) => choice(word.text()?, values),
        }
    }

    pub(crate) fn done(mut self) -> Result<(), Mistake> {
        match (self.plain.next(), self.options.first()) {
            (Some(word), _) => Err(Mistake::new(format!(
                "one word too many: {}",
                shown(&word.bytes)
            ))),
            (None, Some((name, _))) => {
                Err(Mistake::new(format!("option not understood here: {name}")))
            }
            (None, None) => Ok(()),
        }
    }
}

pub(crate) fn choice(text: &str, values: &[&str]) -> Result<i32, Mistake> {
    match values.iter().position(|value| *value == text) {
        Some(position) => Ok(i32::try_from(position).expect("enums are short")),
        None => text
            .parse()
            .map_err(|_| Mistake::new(format!("{text}: give one of {values:?} or a number"))),
    }
}

fn option(word: &Word, names: &[&str]) -> Option<(String, Option<Word>)> {
    if word.is_quoted {
        return None;
    }
    let (name, value) = match word.bytes.iter().position(|&b| b == b'=') {
        Some(at) => (&word.bytes[..at], Some(word.bytes.slice(at + 1..))),
        None => (&word.bytes[..], None),
    };
    let name = names.iter().find(|known| known.as_bytes() == name)?;
    let value = value.map(|bytes| Word {
        bytes,
        is_quoted: false,
    });
    Some(((*name).to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_bytes() {
        let words =
            split(r#"put a\x00\xff "" "two words" x*3 "x*3" a"b c"d"#).expect("a good line");
        let bytes: Vec<&[u8]> = words.iter().map(|word| &word.bytes[..]).collect();
        let expected: [&[u8]; 7] = [
            b"put",
            b"a\0\xff",
            b"",
            b"two words",
            b"xxx",
            b"x*3",
            b"ab cd",
        ];
        assert_eq!(bytes, expected);
        assert!(split("\"open").is_err());
        assert!(split("\\q").is_err());
    }

    #[test]
    fn what_is_shown_can_be_typed() {
        for bytes in [
            &b"a"[..],
            b"",
            b"a b",
            b"\0\xff\"\\",
            b"a=b",
            b"x*3",
            &[b'x'; 1000],
        ] {
            let words = split(&shown(bytes)).expect("a word");
            assert_eq!(words.len(), 1);
            assert_eq!(&words[0].bytes[..], bytes);
        }
    }

    #[test]
    fn options_are_taken_or_refused() {
        let words = split("a limit=3 \"limit=4\" brief").expect("a good line");
        let mut given = Arguments::new(&words, &["limit", "brief"]);
        assert_eq!(given.bytes(), "a");
        assert_eq!(given.bytes(), "limit=4");
        assert_eq!(given.number("limit").expect("a number"), 3);
        assert!(given.done().is_err(), "nobody took the option brief");
    }
}
