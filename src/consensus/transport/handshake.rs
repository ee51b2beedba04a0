//! Who speaks to whom: metadata of each call between members.
//!
//! | key | value |
//! |---|---|
//! | `stele-cluster-id` | the caller's cluster, hexadecimal |
//! | `stele-from`, `stele-to` | member ids, hexadecimal |
//! | `stele-peer-version` | of what this folder speaks, decimal |
//! | `stele-peer-urls` | where the caller is reached, with commas between |
//! | `stele-refusal` | in an answer: `removed` |
//!
//! A call to the wrong cluster or member comes from a wrong URL or a data
//! directory that was exchanged; stepping its messages would mix two groups
//! (etcd server/etcdserver/api/rafthttp, `checkClusterCompatibility`).

use http::{HeaderMap, HeaderValue};
use thiserror::Error;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::Settings;
use crate::http::Url;

/// Raised when members of two releases can no longer talk.
pub(super) const VERSION: u32 = 1;

const CLUSTER_ID: &str = "stele-cluster-id";
const FROM: &str = "stele-from";
const TO: &str = "stele-to";
const PEER_VERSION: &str = "stele-peer-version";
const PEER_URLS: &str = "stele-peer-urls";
const REFUSAL: &str = "stele-refusal";
const REMOVED: &str = "removed";

/// URLs that a stranger is believed to be reached at.
const MAX_URLS: usize = 8;

/// The member that has made a call.
pub(super) struct Caller {
    pub(super) id: u64,
    pub(super) urls: Vec<String>,
}

/// Why a call is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Refusal {
    #[error("the call has no readable {0}: only members may call")]
    NoHandshake(&'static str),
    #[error("the caller speaks version {theirs} of the peer protocol, this member {ours}")]
    Version { theirs: u32, ours: u32 },
    #[error("the caller is of cluster {theirs:x}, this member of cluster {ours:x}")]
    Cluster { theirs: u64, ours: u64 },
    #[error("the call is for member {theirs:x}, this is member {ours:x}")]
    Receiver { theirs: u64, ours: u64 },
    #[error("member {0:x} has been removed from the cluster")]
    Removed(u64),
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        let mut status = Status::failed_precondition(refusal.to_string());
        if let Refusal::Removed(_) = refusal {
            let metadata = status.metadata_mut();
            metadata.insert(REFUSAL, REMOVED.parse().expect("plain ASCII"));
        }
        status
    }
}

/// Whether a call was refused because its caller is no member any more.
pub(super) fn is_removal(status: &Status) -> bool {
    let refusal = status.metadata().get(REFUSAL);
    refusal.is_some_and(|value| value.as_bytes() == REMOVED.as_bytes())
}

/// What each call to `to` carries.
pub(super) fn headers(settings: &Settings, to: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let urls = settings.peer_urls.join(",");
    let values = [
        (CLUSTER_ID, format!("{:x}", settings.cluster_id)),
        (FROM, format!("{:x}", settings.member_id)),
        (TO, format!("{to:x}")),
        (PEER_VERSION, VERSION.to_string()),
        (PEER_URLS, urls),
    ];
    for (name, value) in values {
        // URLs that no header can carry are left out: nobody needs them who
        // has the members table.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    headers
}

/// Reads and checks what came with a call.
pub(super) fn check(settings: &Settings, metadata: &MetadataMap) -> Result<Caller, Refusal> {
    let version = text(metadata, PEER_VERSION)?.parse().ok();
    let version = version.ok_or(Refusal::NoHandshake(PEER_VERSION))?;
    if version != VERSION {
        return Err(Refusal::Version {
            theirs: version,
            ours: VERSION,
        });
    }
    let cluster_id = number(metadata, CLUSTER_ID)?;
    if cluster_id != settings.cluster_id {
        return Err(Refusal::Cluster {
            theirs: cluster_id,
            ours: settings.cluster_id,
        });
    }
    let to = number(metadata, TO)?;
    if to != settings.member_id {
        return Err(Refusal::Receiver {
            theirs: to,
            ours: settings.member_id,
        });
    }
    let id = number(metadata, FROM)?;
    if id == 0 || id == settings.member_id {
        return Err(Refusal::NoHandshake(FROM));
    }
    let urls = text(metadata, PEER_URLS).unwrap_or_default().split(',');
    let urls = urls.filter(|url| url.parse::<Url>().is_ok());
    Ok(Caller {
        id,
        urls: urls.take(MAX_URLS).map(str::to_owned).collect(),
    })
}

fn text<'a>(metadata: &'a MetadataMap, key: &'static str) -> Result<&'a str, Refusal> {
    let value = metadata.get(key).and_then(|value| value.to_str().ok());
    value.ok_or(Refusal::NoHandshake(key))
}

fn number(metadata: &MetadataMap, key: &'static str) -> Result<u64, Refusal> {
    let number = u64::from_str_radix(text(metadata, key)?, 16);
    number.map_err(|_| Refusal::NoHandshake(key))
}
