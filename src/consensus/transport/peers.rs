//! The handle by which everybody else reaches the other members.
//!
//! A call goes over the connection that raft's messages use, so it costs no
//! handshake and fails at once when that peer is out of reach. Statuses of the
//! peer come back as it gave them. Bounding how long a call may take is left
//! to the caller; a peer that falls silent ends its calls about an election
//! timeout later.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tonic::service::Routes;
use tonic::{Response, Status};

use super::service::{PeerCalls, Service, SnapshotReceiver};
use super::{Group, PeerLink};
use crate::http::Url;
use crate::http::dial::{self, Dialer};
use crate::http::tls::ClientTls;
use crate::proto::etcdserverpb::{
    HashKvRequest, HashKvResponse, LeaseKeepAliveRequest, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, Member, MemberPromoteRequest,
};
use crate::proto::peer::peer_client::PeerClient;
use crate::proto::peer::peer_server::PeerServer;
use crate::proto::peer::{MembersRequest, VersionRequest, VersionResponse};

/// How long one URL may take to answer a member that wants to join.
const JOIN_LIMIT: Duration = Duration::from_secs(5);

/// The other members. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    pub(super) group: Arc<Group>,
}

impl Peers {
    /// Extends a lease on the leader; answers its time to live in seconds, 0
    /// for a lease that does not exist.
    pub async fn lease_keep_alive(&self, leader: u64, id: i64) -> Result<i64, Status> {
        let request = LeaseKeepAliveRequest { id };
        let response = self.client(leader)?.lease_keep_alive(request).await;
        Ok(answered(response)?.ttl)
    }

    pub async fn lease_time_to_live(
        &self,
        leader: u64,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Status> {
        let response = self.client(leader)?.lease_time_to_live(request).await;
        answered(response)
    }

    /// Answers all members as they are after the promotion.
    pub async fn member_promote(&self, leader: u64, id: u64) -> Result<Vec<Member>, Status> {
        let request = MemberPromoteRequest { id };
        let response = self.client(leader)?.member_promote(request).await;
        Ok(answered(response)?.members)
    }

    pub async fn hash_kv(&self, member: u64, revision: i64) -> Result<HashKvResponse, Status> {
        let request = HashKvRequest { revision };
        let response = self.client(member)?.hash_kv(request).await;
        answered(response)
    }

    pub async fn version(&self, member: u64) -> Result<VersionResponse, Status> {
        let response = self.client(member)?.version(VersionRequest {}).await;
        answered(response)
    }

    /// For how long a peer has been connected. None: it is not.
    pub fn is_connected(&self, id: u64) -> Option<Duration> {
        let since = self.group.remote(id)?.connected_since()?;
        Some(since.elapsed())
    }

    /// As last measured.
    pub fn round_trip(&self, id: u64) -> Option<Duration> {
        self.group.remote(id)?.round_trip()
    }

    /// A client on a connection of its own, for sending a whole state.
    pub async fn snapshot_client(&self, id: u64) -> Result<PeerClient<PeerLink>, Status> {
        let remote = self.group.remote(id).ok_or_else(|| no_member(id))?;
        remote.separate_client(&self.group.local).await
    }

    /// Resolves when another member has refused this one because it is no
    /// member any more. This one should then be stopped (CLU-8).
    pub async fn removed(&self) {
        self.group.local.removed.cancelled().await;
    }

    /// Ends all connections, and the calls that peers hold open: they would
    /// hold up the stop of the listener.
    pub fn close(&self) {
        self.group.local.closing.cancel();
    }

    /// What the peer port serves. `snapshots` is none where nobody takes any.
    pub fn routes(
        &self,
        calls: Arc<dyn PeerCalls>,
        snapshots: Option<Arc<dyn SnapshotReceiver>>,
    ) -> Routes {
        let service = Service::new(self.group.clone(), calls, snapshots);
        let server =
            PeerServer::new(service).max_decoding_message_size(super::lane::MAX_FRAME_BYTES);
        Routes::new(server).prepare()
    }

    fn client(&self, id: u64) -> Result<PeerClient<PeerLink>, Status> {
        self.group.remote(id).ok_or_else(|| no_member(id))?.client()
    }
}

/// What the peer has answered. A failure on the way there or back, which the
/// library has words of its own for, is told from a status of the peer by the
/// error behind it.
fn answered<T>(response: Result<Response<T>, Status>) -> Result<T, Status> {
    match response {
        Ok(response) => Ok(response.into_inner()),
        Err(status) if std::error::Error::source(&status).is_some() => Err(Status::unavailable(
            format!("the connection broke: {}", status.message()),
        )),
        Err(status) => Err(status),
    }
}

fn no_member(id: u64) -> Status {
    Status::unavailable(format!("member {id:x} is not known"))
}

/// Asks the members behind `urls`, one after the other, for their cluster: its
/// id and its members. For a member that has no identity yet.
///
/// # Errors
/// When none of them answers; says what each had to say.
pub async fn members_of(
    urls: &[String],
    tls: Option<&ClientTls>,
    local_address: Option<IpAddr>,
) -> Result<(u64, Vec<Member>), String> {
    let dialer = Dialer::new(dial::Settings {
        tls: tls.cloned(),
        local_address,
        connect_limit: JOIN_LIMIT,
        ping_interval: JOIN_LIMIT,
        ping_timeout: JOIN_LIMIT,
    });
    let mut failures = Vec::new();
    for text in urls {
        let asked = match text.parse::<Url>() {
            Ok(url) => tokio::time::timeout(JOIN_LIMIT, ask_members(&dialer, &url)).await,
            Err(error) => Ok(Err(error.to_string())),
        };
        match asked {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(failure)) => failures.push(failure),
            Err(_) => failures.push(format!("{text} does not answer")),
        }
    }
    Err(failures.join("; "))
}

async fn ask_members(dialer: &Dialer, url: &Url) -> Result<(u64, Vec<Member>), String> {
    let dialed = dialer.dial(url, HeaderMap::new()).await;
    let (link, connection) = dialed.map_err(|error| error.to_string())?;
    // Ends with the link.
    tokio::spawn(connection);
    let answer = PeerClient::new(link).members(MembersRequest {}).await;
    let answer = answer.map_err(|status| format!("{url}: {}", status.message()))?;
    let answer = answer.into_inner();
    Ok((answer.cluster_id, answer.members))
}
