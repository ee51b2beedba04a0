//! Values of options: how each kind is written on a command line, and how in
//! a configuration file.
//!
//! Texts follow Go's `flag`, `strconv` and `time` packages, because the flags
//! of existing installations do.

use std::time::Duration;

use serde_json::Value as Json;

use crate::http::Url;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Bool,
    Uint,
    Uint32,
    Int,
    Duration,
    Urls,
    List,
    Choice(&'static [&'static str]),
    /// A flag that never takes a value and means nothing.
    Switch,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Bool(bool),
    Uint(u64),
    Int(i64),
    Duration(Duration),
    Urls(Vec<Url>),
    List(Vec<String>),
}

impl Kind {
    /// Whether the flag may stand alone, and takes a value only after `=`.
    pub(super) fn is_switch(self) -> bool {
        matches!(self, Kind::Bool | Kind::Switch)
    }

    /// Reads a value as given on a command line or in a variable. The error
    /// says what is wrong with it.
    pub(super) fn parse(self, text: &str) -> Result<Value, String> {
        match self {
            Kind::Text => Ok(Value::Text(text.to_owned())),
            Kind::Bool => match text {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
                _ => Err("not a boolean (true, false, 1, 0, t or f)".to_owned()),
            },
            Kind::Uint => Ok(Value::Uint(parse_uint(text)?)),
            Kind::Uint32 => match u32::try_from(parse_uint(text)?) {
                Ok(number) => Ok(Value::Uint(number.into())),
                Err(_) => Err("larger than 32 bits".to_owned()),
            },
            Kind::Int => parse_int(text).map(Value::Int),
            Kind::Duration => parse_duration(text).map(Value::Duration),
            Kind::Urls => parse_urls(text).map(Value::Urls),
            Kind::List => Ok(Value::List(split_list(text))),
            Kind::Choice(choices) if choices.contains(&text) => Ok(Value::Text(text.to_owned())),
            Kind::Choice(choices) => Err(format!("must be one of: {}", choices.join(", "))),
            // Whatever it was meant to say, it goes unheard.
            Kind::Switch => Ok(Value::Bool(true)),
        }
    }

    /// Reads a value as given in a configuration file, where durations are
    /// integers in nanoseconds and lists may be lists. Null means not given.
    pub(super) fn read_from_file(self, json: &Json) -> Result<Option<Value>, String> {
        let value = match (self, json) {
            (_, Json::Null) => return Ok(None),
            // An empty list of URLs leaves the default in place.
            (Kind::Urls | Kind::Choice(_), Json::String(text)) if text.is_empty() => {
                return Ok(None);
            }
            (Kind::Text | Kind::Choice(_) | Kind::Urls | Kind::List, Json::String(text)) => {
                self.parse(text)?
            }
            // YAML reads an unquoted 1h as text but 1 as a number.
            (Kind::Text, Json::Number(number)) => Value::Text(number.to_string()),
            (Kind::Text, Json::Bool(value)) => Value::Text(value.to_string()),
            (Kind::List, Json::Array(items)) => {
                let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
                let texts: Option<Vec<String>> = texts.collect();
                Value::List(texts.ok_or("must be a list of strings")?)
            }
            (Kind::Bool | Kind::Switch, Json::Bool(value)) => Value::Bool(*value),
            (Kind::Uint | Kind::Uint32 | Kind::Int, Json::Number(number)) => {
                self.parse(&number.to_string())?
            }
            (Kind::Duration, Json::Number(number)) => match number.as_i64() {
                Some(nanos) => Value::Duration(from_nanos(nanos.into())),
                None => return Err("must be an integer (nanoseconds)".to_owned()),
            },
            _ => return Err(format!("must be {}", self.in_file())),
        };
        Ok(Some(value))
    }

    fn in_file(self) -> &'static str {
        match self {
            Kind::Text | Kind::Choice(_) => "a string",
            Kind::Urls => "a string of URLs separated by commas",
            Kind::List => "a list of strings, or a string with commas",
            Kind::Bool | Kind::Switch => "true or false",
            Kind::Uint | Kind::Uint32 | Kind::Int => "an integer",
            Kind::Duration => "an integer (nanoseconds)",
        }
    }
}

/// An integer in Go's notation: decimal, or with a prefix 0x, 0o, 0b or 0.
/// Underscores are allowed only together with a prefix there, and nobody
/// writes them, so they are not here.
fn parse_uint(text: &str) -> Result<u64, String> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', b'o' | b'O', ..] => (&text[2..], 8),
        [b'0', b'b' | b'B', ..] => (&text[2..], 2),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    // from_str_radix takes a plus sign, Go does not.
    let number = if digits.starts_with('+') {
        None
    } else {
        u64::from_str_radix(digits, radix).ok()
    };
    number.ok_or_else(|| "not an unsigned integer".to_owned())
}

fn parse_int(text: &str) -> Result<i64, String> {
    let (is_negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let magnitude = parse_uint(digits).map(i128::from).ok();
    let number = magnitude.map(|number| if is_negative { -number } else { number });
    number
        .and_then(|number| number.try_into().ok())
        .ok_or_else(|| "not an integer".to_owned())
}

/// A duration in Go's notation: numbers with units, such as `1h30m` or
/// `1.5s`, and a bare `0`. A negative one becomes zero, since no option tells
/// the two apart.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a duration (such as 100ms, 5s or 1h30m)");
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let number_len = rest
            .find(|c: char| c != '.' && !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(number_len);
        let unit_len = after
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        nanos += part_nanos(number, unit).ok_or_else(invalid)?;
        if nanos > i64::MAX.into() {
            return Err(invalid());
        }
        rest = after;
    }
    Ok(from_nanos(if text.starts_with('-') {
        -nanos
    } else {
        nanos
    }))
}

/// One number with its unit. Exact, which floating point would not be.
fn part_nanos(number: &str, unit: &str) -> Option<i128> {
    let unit_nanos: i128 = match unit {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let digits = |text: &str| {
        if text.is_empty() {
            Some(0)
        } else {
            text.parse::<i128>().ok()
        }
    };
    // Digits beyond nanoseconds of an hour cannot count.
    let fraction = &fraction[..fraction.len().min(18)];
    let scale = 10_i128.pow(fraction.len() as u32);
    digits(whole)?
        .checked_mul(unit_nanos)?
        .checked_add(digits(fraction)?.checked_mul(unit_nanos)? / scale)
}

fn from_nanos(nanos: i128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX))
}

/// Sorted, each once. An empty text is an empty list.
fn parse_urls(text: &str) -> Result<Vec<Url>, String> {
    let mut urls = split_list(text)
        .iter()
        .map(|item| item.parse::<Url>().map_err(|error| error.to_string()))
        .collect::<Result<Vec<Url>, String>>()?;
    urls.sort();
    urls.dedup();
    Ok(urls)
}

/// Items between commas, without blanks around them and without empty ones.
pub(super) fn split_list(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let nanos = |text: &str| {
            parse_duration(text)
                .map(|duration| duration.as_nanos())
                .ok()
        };
        for (text, expected) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("-0", Some(0)),
            ("5ns", Some(5)),
            ("7us", Some(7_000)),
            ("7\u{b5}s", Some(7_000)),
            ("7\u{3bc}s", Some(7_000)),
            ("100ms", Some(100_000_000)),
            ("5s", Some(5_000_000_000)),
            ("+5s", Some(5_000_000_000)),
            ("-5s", Some(0)),
            ("1h30m", Some(5_400_000_000_000)),
            ("1m0.5s", Some(60_500_000_000)),
            (".5s", Some(500_000_000)),
            ("1.s", Some(1_000_000_000)),
            ("0.3333333333333333333h", Some(1_200_000_000_000)),
            ("2540400h", Some(9_145_440_000_000_000_000)),
            ("2600000h", None),
            ("99999999999999999999999999h", None),
            ("", None),
            ("-", None),
            ("5", None),
            ("5 s", None),
            ("s", None),
            (".s", None),
            ("1.2.3s", None),
            ("5d", None),
            ("1h5", None),
        ] {
            let result = nanos(text);
            // Go truncates the last case of a long fraction by one nanosecond.
            if text.starts_with("0.333") {
                assert!(result.unwrap().abs_diff(expected.unwrap()) <= 1, "{text:?}");
            } else {
                assert_eq!(result, expected, "{text:?}");
            }
        }
    }

    #[test]
    fn integers_are_read_as_go_reads_them() {
        for (text, expected) in [
            ("10", Some(10)),
            ("0", Some(0)),
            ("0x10", Some(16)),
            ("010", Some(8)),
            ("0o17", Some(15)),
            ("0b11", Some(3)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("-1", None),
            ("+1", None),
            ("", None),
            ("1.5", None),
        ] {
            assert_eq!(parse_uint(text).ok(), expected, "{text:?}");
        }
        assert_eq!(parse_int("-1"), Ok(-1));
        assert_eq!(parse_int("-9223372036854775808"), Ok(i64::MIN));
        assert!(parse_int("9223372036854775808").is_err());
        assert!(Kind::Uint32.parse("4294967296").is_err());
    }

    #[test]
    fn url_lists_are_sorted_sets() {
        let Ok(Value::Urls(urls)) = Kind::Urls.parse("http://b:2, http://a:1,http://b:2") else {
            panic!("these are URLs");
        };
        assert_eq!(
            urls.iter().map(Url::as_str).collect::<Vec<_>>(),
            ["http://a:1", "http://b:2"]
        );
        assert_eq!(Kind::Urls.parse(""), Ok(Value::Urls(Vec::new())));
        assert!(Kind::Urls.parse("a:1").is_err());
    }
}
