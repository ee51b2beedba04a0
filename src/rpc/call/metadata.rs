//! Metadata that every call may carry.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue};
use prometheus::IntCounter;

use super::methods::Method;
use crate::metrics;
use crate::rpc::status::{self, Refusal};

const CLIENT_API_VERSION: &str = "client-api-version";
const HAS_LEADER: &str = "hasleader";
const TIMEOUT: &str = "grpc-timeout";
const ENCODING: &str = "grpc-encoding";
const ACCEPT_ENCODING: &str = "grpc-accept-encoding";

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Metadata<'h> {
    pub(super) client_api_version: Option<&'h [u8]>,
    /// The client would rather fail than talk to a member that knows no leader
    /// (GEN-18).
    pub(super) requires_leader: bool,
    /// How long the client waits. What does not parse is no deadline.
    pub(super) timeout: Option<Duration>,
    /// The client can read a compressed answer, but sends no compressed
    /// request; see [`keep_plain`].
    pub(super) would_compress: bool,
}

/// Reads them in one pass: looking up each name would cost more than looking
/// at the handful of headers that a call has.
pub(super) fn read(headers: &HeaderMap) -> Metadata<'_> {
    let (mut version, mut leader, mut deadline) = (None, None, None);
    let (mut encoding, mut accepted) = (None, None);
    for (name, value) in headers {
        let field = match name.as_str() {
            CLIENT_API_VERSION => &mut version,
            HAS_LEADER => &mut leader,
            TIMEOUT => &mut deadline,
            ENCODING => &mut encoding,
            ACCEPT_ENCODING => &mut accepted,
            _ => continue,
        };
        // Of a name that is repeated the first value counts.
        field.get_or_insert(value);
    }
    let is_compressed = encoding.is_some_and(|encoding| encoding != "identity");
    Metadata {
        client_api_version: version.map(HeaderValue::as_bytes),
        requires_leader: leader.is_some_and(|value| value == "true"),
        timeout: deadline.and_then(timeout),
        would_compress: accepted.is_some() && !is_compressed,
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

fn timeout(value: &HeaderValue) -> Option<Duration> {
    /// As the protocol has it, and enough for three centuries in hours.
    const MAX_DIGITS: usize = 8;
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
    if !is_number || digits.len() > MAX_DIGITS {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 60 * 60)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// Makes the answer to a request that is not compressed one that is not
/// either, as Go's library does. tonic would compress for every client that
/// merely could read it, at the price of most of the call's CPU time.
pub(super) fn keep_plain(headers: &mut HeaderMap) {
    headers.remove(ACCEPT_ENCODING);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        let parse = |text: &str| {
            let value = HeaderValue::from_bytes(text.as_bytes()).unwrap();
            let name = http::HeaderName::from_static(TIMEOUT);
            read(&HeaderMap::from_iter([(name, value)])).timeout
        };
        assert_eq!(parse("5S"), Some(Duration::from_secs(5)));
        assert_eq!(
            parse("99999999H"),
            Some(Duration::from_secs(359_999_996_400))
        );
        assert_eq!(parse("3M"), Some(Duration::from_secs(180)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("7u"), Some(Duration::from_micros(7)));
        assert_eq!(parse("0n"), Some(Duration::ZERO));
        for nonsense in [
            "",
            "S",
            "5",
            "5s",
            "123456789S",
            "-1S",
            "+1S",
            " 1S",
            "1é",
            "é",
        ] {
            assert_eq!(parse(nonsense), None, "{nonsense:?}");
        }
        assert_eq!(read(&HeaderMap::new()).timeout, None);
    }

    #[test]
    fn answers_are_compressed_as_requests_are() {
        let mut headers = HeaderMap::new();
        assert!(!read(&headers).would_compress);
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(read(&headers).would_compress);
        headers.insert(ENCODING, HeaderValue::from_static("gzip"));
        assert!(!read(&headers).would_compress);
        headers.insert(ENCODING, HeaderValue::from_static("identity"));
        assert!(read(&headers).would_compress);
        keep_plain(&mut headers);
        assert!(!headers.contains_key(ACCEPT_ENCODING));
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
