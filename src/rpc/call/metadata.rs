//! Metadata that every call may carry.
//!
//! What does not parse is a fault of the call, in the words of Go's library
//! (grpc-go's `http_util.go`), since there the call is refused.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue};
use prometheus::IntCounter;

use super::methods::Method;
use super::wording::quoted;
use crate::metrics;
use crate::rpc::status::{self, Refusal};

const CONTENT_TYPE: &str = "content-type";
const HOST: &str = "host";
const CLIENT_API_VERSION: &str = "client-api-version";
const HAS_LEADER: &str = "hasleader";
const TIMEOUT: &str = "grpc-timeout";
const ENCODING: &str = "grpc-encoding";
const ACCEPT_ENCODING: &str = "grpc-accept-encoding";

/// Ends the names of metadata whose values are bytes, in base64.
const BINARY: &str = "-bin";

/// The label of clients that do not say.
const UNKNOWN_VERSION: &[u8] = b"unknown";

/// Versions that get a label of their own. Real ones are few; a client that
/// makes up a new one for each call must not fill the memory.
const MAX_VERSIONS: usize = 64;

/// The label of versions beyond [`MAX_VERSIONS`].
const OTHER_VERSION: &str = "other";

/// Calls by version, unary and streams.
type Versions = HashMap<Box<[u8]>, [IntCounter; 2]>;

static VERSIONS: LazyLock<ArcSwap<Versions>> = LazyLock::new(ArcSwap::default);

/// What the metadata of a call say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metadata<'h> {
    pub(super) content_type: Option<&'h HeaderValue>,
    /// How many names of the host, besides the authority.
    pub(super) hosts: usize,
    pub(super) client_api_version: Option<&'h [u8]>,
    /// The client would rather fail than talk to a member that knows no leader
    /// (GEN-18).
    pub(super) requires_leader: bool,
    /// How long the client waits.
    pub(super) timeout: Option<Duration>,
    pub(super) encoding: Encoding<'h>,
    /// The client has said something about compression; see
    /// [`settle_encoding`].
    pub(super) names_encodings: bool,
    /// What does not parse.
    pub(super) fault: Option<String>,
}

/// How the client may compress its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding<'h> {
    Plain,
    Gzip,
    Unknown(&'h [u8]),
}

/// Reads them in one pass: looking up each name would cost more than looking
/// at the handful of headers that a call has.
pub(super) fn read(headers: &HeaderMap) -> Metadata<'_> {
    let (mut version, mut leader, mut encoding, mut content_type) = (None, None, None, None);
    let (mut hosts, mut deadline, mut fault) = (0, None, None);
    let mut names_encodings = false;
    for (name, value) in headers {
        let field = match name.as_str() {
            CLIENT_API_VERSION => &mut version,
            HAS_LEADER => &mut leader,
            ENCODING => &mut encoding,
            CONTENT_TYPE => &mut content_type,
            TIMEOUT => {
                match timeout(value.as_bytes()) {
                    Ok(timeout) => deadline = Some(timeout),
                    Err(reason) => fault = Some(format!("malformed grpc-timeout: {reason}")),
                }
                continue;
            }
            HOST => {
                hosts += 1;
                continue;
            }
            ACCEPT_ENCODING => {
                names_encodings = true;
                continue;
            }
            name if name.ends_with(BINARY) => {
                if let Some(at) = base64_fault(value.as_bytes()) {
                    fault = Some(format!(
                        "malformed binary metadata {} in header {}: illegal base64 data at input \
                         byte {at}",
                        quoted(value.as_bytes()),
                        quoted(name.as_bytes()),
                    ));
                }
                continue;
            }
            _ => continue,
        };
        // Of a name that is repeated the first value counts.
        field.get_or_insert(value);
    }
    Metadata {
        content_type,
        hosts,
        client_api_version: version.map(HeaderValue::as_bytes),
        requires_leader: leader.is_some_and(|value| value == "true"),
        timeout: deadline,
        encoding: match encoding.map(HeaderValue::as_bytes) {
            None | Some(b"" | b"identity") => Encoding::Plain,
            Some(b"gzip") => Encoding::Gzip,
            Some(unknown) => Encoding::Unknown(unknown),
        },
        names_encodings: names_encodings || encoding.is_some(),
        fault,
    }
}

/// Counts the call under the client's API version (GEN-20).
pub(super) fn count_client(method: &Method, version: Option<&[u8]>) -> Result<(), Refusal> {
    let version = version.unwrap_or(UNKNOWN_VERSION);
    let stream = usize::from(!method.is_unary());
    if let Some(counters) = VERSIONS.load().get(version) {
        counters[stream].inc();
        return Ok(());
    }
    let name = std::str::from_utf8(version).map_err(|_| status::INVALID_CLIENT_API_VERSION)?;
    let is_full = VERSIONS.load().len() >= MAX_VERSIONS;
    let name = if is_full { OTHER_VERSION } else { name };
    let counters = ["unary", "stream"]
        .map(|kind| metrics::SERVER_CLIENT_REQUESTS_TOTAL.with_label_values(&[kind, name]));
    counters[stream].inc();
    if !is_full {
        VERSIONS.rcu(|versions| {
            let mut versions = Versions::clone(versions);
            versions.insert(version.into(), counters.clone());
            versions
        });
    }
    Ok(())
}

fn timeout(value: &[u8]) -> Result<Duration, String> {
    /// A unit and, as the protocol has it, at most eight digits: enough for
    /// three centuries in hours, so that nothing overflows.
    const MAX_BYTES: usize = 9;
    let refused = |what: &str| Err(format!("transport: timeout {what}: {}", quoted(value)));
    let (unit, digits) = match value {
        [digits @ .., unit] if !digits.is_empty() => (unit, digits),
        _ => return refused("string is too short"),
    };
    if value.len() > MAX_BYTES {
        return refused("string is too long");
    }
    let nanos_per_unit = match unit {
        b'H' => 3_600_000_000_000,
        b'M' => 60_000_000_000,
        b'S' => 1_000_000_000,
        b'm' => 1_000_000,
        b'u' => 1_000,
        b'n' => 1,
        _ => return refused("unit is not recognized"),
    };
    let mut amount: u64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            let digits = quoted(digits);
            return Err(format!(
                "strconv.ParseUint: parsing {digits}: invalid syntax"
            ));
        }
        amount = amount * 10 + u64::from(digit - b'0');
    }
    let nanos = u128::from(amount) * nanos_per_unit;
    Ok(Duration::new(
        (nanos / 1_000_000_000) as u64,
        (nanos % 1_000_000_000) as u32,
    ))
}

/// Where bytes in base64 are wrong. Those of a length that needs none may do
/// without padding.
fn base64_fault(value: &[u8]) -> Option<usize> {
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    let letters = value.iter().take_while(|byte| is_letter(byte)).count();
    let is_padded = value.len().is_multiple_of(4);
    match (letters % 4, &value[letters..]) {
        // A letter that is alone in its group says less than a byte.
        (1, []) => Some(letters - 1),
        (_, []) => None,
        (2, [b'=', b'=', rest @ ..]) if is_padded => (!rest.is_empty()).then_some(letters + 2),
        (3, [b'=', rest @ ..]) if is_padded => (!rest.is_empty()).then_some(letters + 1),
        _ => Some(letters),
    }
}

/// Makes the answer compressed if and only if the request may be, as Go's
/// library does. tonic would compress for every client that merely could read
/// it, at the price of most of the call's CPU time.
pub(super) fn settle_encoding(headers: &mut HeaderMap, is_gzip: bool) {
    if is_gzip {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    } else {
        headers.remove(ACCEPT_ENCODING);
        headers.remove(ENCODING);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(name: &'static str, value: &str) -> Option<String> {
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
        let name = http::HeaderName::from_static(name);
        read(&HeaderMap::from_iter([(name, value)])).fault
    }

    #[test]
    fn timeouts() {
        let parse = |text: &str| timeout(text.as_bytes()).unwrap();
        assert_eq!(parse("5S"), Duration::from_secs(5));
        assert_eq!(parse("99999999H"), Duration::from_secs(359_999_996_400));
        assert_eq!(parse("3M"), Duration::from_secs(180));
        assert_eq!(parse("250m"), Duration::from_millis(250));
        assert_eq!(parse("7u"), Duration::from_micros(7));
        assert_eq!(parse("0n"), Duration::ZERO);
        assert_eq!(read(&HeaderMap::new()).timeout, None);
    }

    /// As recorded from etcd 3.7.3.
    #[test]
    fn malformed_timeouts_are_faults() {
        let says = |value: &str, reason: &str| {
            let fault = fault(TIMEOUT, value).unwrap();
            assert_eq!(fault, format!("malformed grpc-timeout: {reason}"));
        };
        for short in ["", "S", "5"] {
            let reason = format!("transport: timeout string is too short: \"{short}\"");
            says(short, &reason);
        }
        says(
            "123456789S",
            "transport: timeout string is too long: \"123456789S\"",
        );
        for unit in ["5s", "1é", "é"] {
            let reason = format!("transport: timeout unit is not recognized: \"{unit}\"");
            says(unit, &reason);
        }
        for digits in ["-1", "+1", " 1", "1_0", "0x1", "1.5"] {
            let reason = format!("strconv.ParseUint: parsing \"{digits}\": invalid syntax");
            says(&format!("{digits}S"), &reason);
        }
        says("\"S", r#"strconv.ParseUint: parsing "\"": invalid syntax"#);
    }

    /// As recorded from etcd 3.7.3.
    #[test]
    fn malformed_binary_metadata_are_faults() {
        for good in ["", "AAAA", "AAA", "AAA=", "AB", "AA=="] {
            assert_eq!(fault("x-bin", good), None, "{good}");
        }
        for (bad, at) in [
            ("!!!", 0),
            ("AAAA,AAAA", 4),
            ("_-__", 0),
            ("AAAAA", 4),
            ("AA=A", 2),
            ("AAA=AAAA", 4),
            ("AAAAA=", 5),
        ] {
            let text = format!(
                "malformed binary metadata \"{bad}\" in header \"x-bin\": illegal base64 data at \
                 input byte {at}"
            );
            assert_eq!(fault("x-bin", bad), Some(text));
        }
    }

    #[test]
    fn answers_are_compressed_as_requests_are() {
        let settled = |encoding: Option<&'static str>, accepted: bool| {
            let mut headers = HeaderMap::new();
            if let Some(encoding) = encoding {
                headers.insert(ENCODING, HeaderValue::from_static(encoding));
            }
            if accepted {
                headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
            }
            let metadata = read(&headers);
            assert_eq!(metadata.names_encodings, !headers.is_empty());
            let is_gzip = metadata.encoding == Encoding::Gzip;
            settle_encoding(&mut headers, is_gzip);
            headers.contains_key(ACCEPT_ENCODING)
        };
        for accepted in [false, true] {
            for plain in [None, Some("identity"), Some("")] {
                assert!(!settled(plain, accepted));
            }
            assert!(settled(Some("gzip"), accepted));
        }
        let snappy = (
            http::HeaderName::from_static(ENCODING),
            HeaderValue::from_static("snappy"),
        );
        let headers = HeaderMap::from_iter([snappy]);
        assert_eq!(read(&headers).encoding, Encoding::Unknown(b"snappy"));
    }

    #[test]
    fn the_leader_is_required_by_one_value_only() {
        let mut headers = HeaderMap::new();
        assert!(!read(&headers).requires_leader);
        headers.insert(HAS_LEADER, HeaderValue::from_static("TRUE"));
        assert!(!read(&headers).requires_leader);
        headers.insert(HAS_LEADER, HeaderValue::from_static("true"));
        assert!(read(&headers).requires_leader);
        headers.append(HAS_LEADER, HeaderValue::from_static("false"));
        assert!(read(&headers).requires_leader, "the first value counts");
    }

    #[test]
    fn versions_are_counted_and_bounded() {
        let method = super::super::methods::find("/etcdserverpb.KV/Range").unwrap();
        let count = |version: &[u8]| count_client(method, Some(version));
        for made_up in 0..MAX_VERSIONS + 10 {
            assert_eq!(count(format!("9.{made_up}").as_bytes()), Ok(()));
        }
        assert_eq!(VERSIONS.load().len(), MAX_VERSIONS);
        let other = metrics::SERVER_CLIENT_REQUESTS_TOTAL.with_label_values(&["unary", "other"]);
        assert!(other.get() >= 10);
        assert_eq!(count(b"\xff"), Err(status::INVALID_CLIENT_API_VERSION));
    }
}
