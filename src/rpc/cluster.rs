//! The Cluster service: who the members are, and changing that.
//!
//! Requests that would endanger the quorum are refused before they are
//! proposed, as far as this member can see (`--strict-reconfig-check`, CLU-7 to
//! CLU-10; etcd server/etcdserver/server.go, `mayAddMember` and its siblings).
//! Whether a change fits the members of the moment is decided by the machine,
//! when it is applied.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Uri;
use sha1::{Digest as _, Sha1};
use tonic::{Request, Response, Status};

use super::header;
use super::status::{self, Refusal};
use crate::consensus::{Consensus, Peers};
use crate::machine::Published;
use crate::machine::command::{MemberChange, MemberChangeKind as Kind};
use crate::proto::etcdserverpb::cluster_server::Cluster;
use crate::proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse,
};

/// A peer counts as connected when it has been so for this long (CLU-7).
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);

/// A learner is ready for promotion when it has so much of the leader's log
/// (CLU-10).
const READY_PERCENT: u64 = 90;

/// How long to wait before asking the leader again after a failed attempt.
const RETRY: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// Whether changes that would lose the quorum are refused.
    pub(super) checks_reconfiguration: bool,
    pub(super) max_learners: u32,
    /// How long a promotion waits for a leader.
    pub(super) request_timeout: Duration,
}

/// What changing the members takes. Shared with the calls of peers.
pub(super) struct Membership {
    consensus: Consensus,
    published: Arc<Published>,
    peers: Peers,
    member_id: u64,
    settings: Settings,
}

pub(super) struct Service {
    membership: Arc<Membership>,
    header: header::Source,
}

impl Service {
    pub(super) fn new(membership: Arc<Membership>, header: header::Source) -> Service {
        Service { membership, header }
    }
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.membership.consensus.read_barrier().await?;
        }
        Ok(Response::new(MemberListResponse {
            // Without a revision (GEN-3).
            header: self.header.header(0),
            members: self.membership.published.members().to_vec(),
        }))
    }

    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        let request = request.into_inner();
        check_urls(&request.peer_ur_ls)?;
        let member = new_member(request.peer_ur_ls, request.is_learner, SystemTime::now());
        let members = self.membership.add(member.clone()).await?;
        Ok(Response::new(MemberAddResponse {
            header: self.header.header(0),
            member: Some(member),
            members,
        }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let members = self.membership.remove(request.into_inner().id).await?;
        Ok(Response::new(MemberRemoveResponse {
            header: self.header.header(0),
            members,
        }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        check_urls(&peer_ur_ls)?;
        let members = self.membership.update(id, peer_ur_ls).await?;
        Ok(Response::new(MemberUpdateResponse {
            header: self.header.header(0),
            members,
        }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let members = self.membership.promote(request.into_inner().id).await?;
        Ok(Response::new(MemberPromoteResponse {
            header: self.header.header(0),
            members,
        }))
    }
}

impl Membership {
    pub(super) fn new(
        consensus: Consensus,
        published: Arc<Published>,
        peers: Peers,
        member_id: u64,
        settings: Settings,
    ) -> Membership {
        Membership {
            consensus,
            published,
            peers,
            member_id,
            settings,
        }
    }

    async fn add(&self, member: Member) -> Result<Vec<Member>, Status> {
        if self.settings.checks_reconfiguration {
            let voters = self.voters();
            if !member.is_learner && !may_add_voter(&voters) {
                return Err(status::MEMBER_NOT_ENOUGH_STARTED.into());
            }
            if !may_grow(self.connected(&voters), voters.len()) {
                return Err(status::UNHEALTHY.into());
            }
        }
        let kind = if member.is_learner {
            Kind::AddLearner
        } else {
            Kind::Add
        };
        self.change(kind, member).await
    }

    async fn remove(&self, id: u64) -> Result<Vec<Member>, Status> {
        if self.settings.checks_reconfiguration {
            self.check_removal(id)?;
        }
        self.change_id(Kind::Remove, id).await
    }

    async fn update(&self, id: u64, peer_urls: Vec<String>) -> Result<Vec<Member>, Status> {
        let member = Member {
            id,
            peer_ur_ls: peer_urls,
            ..Member::default()
        };
        self.change(Kind::Update, member).await
    }

    /// Only the leader knows how far a learner is, so others pass it on.
    async fn promote(&self, id: u64) -> Result<Vec<Member>, Status> {
        let deadline = tokio::time::Instant::now() + self.settings.request_timeout;
        loop {
            let consensus = self.consensus.status();
            let outcome = if consensus.is_leader {
                self.promote_as_leader(id).await
            } else if consensus.leader == 0 {
                Err(status::NO_LEADER.into())
            } else {
                let call = self.peers.member_promote(consensus.leader, id);
                match tokio::time::timeout_at(deadline, call).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(status::TIMEOUT.into()),
                }
            };
            let is_over = tokio::time::Instant::now() + RETRY >= deadline;
            match outcome {
                Err(error) if is_transient(&error) && !is_over => tokio::time::sleep(RETRY).await,
                Err(error) if is_transient(&error) && self.consensus.status().leader != 0 => {
                    return Err(status::TIMEOUT.into());
                }
                outcome => return outcome,
            }
        }
    }

    /// [`Membership::promote`] on the leader; also for the calls of peers.
    pub(super) async fn promote_as_leader(&self, id: u64) -> Result<Vec<Member>, Status> {
        self.consensus.read_barrier().await?;
        if !self.consensus.status().is_leader {
            return Err(status::NOT_LEADER.into());
        }
        let known = self.published.members();
        let Some(member) = known.iter().find(|member| member.id == id) else {
            return Err(status::MEMBER_NOT_FOUND.into());
        };
        if member.is_learner {
            let matched = self.consensus.progress(id).map_or(0, |each| each.matched);
            if !is_ready(matched, self.consensus.status().committed_index) {
                return Err(status::LEARNER_NOT_READY.into());
            }
        }
        if self.settings.checks_reconfiguration && !may_promote(&self.voters()) {
            return Err(status::MEMBER_NOT_ENOUGH_STARTED.into());
        }
        self.change_id(Kind::Promote, id).await
    }

    fn check_removal(&self, id: u64) -> Result<(), Refusal> {
        let members = self.published.members();
        if members.iter().any(|each| each.id == id && each.is_learner) {
            return Ok(());
        }
        let voters = self.voters();
        if !may_remove_voter(&voters, id) {
            return Err(status::MEMBER_NOT_ENOUGH_STARTED);
        }
        // One that is down takes nothing from the quorum.
        if id != self.member_id && self.peers.is_connected(id).is_none() {
            return Ok(());
        }
        let rest: Vec<Member> = voters.into_iter().filter(|each| each.id != id).collect();
        if self.connected(&rest) < quorum(rest.len()) {
            return Err(status::UNHEALTHY);
        }
        Ok(())
    }

    async fn change_id(&self, kind: Kind, id: u64) -> Result<Vec<Member>, Status> {
        let member = Member {
            id,
            ..Member::default()
        };
        self.change(kind, member).await
    }

    async fn change(&self, kind: Kind, member: Member) -> Result<Vec<Member>, Status> {
        let change = MemberChange {
            kind: kind as i32,
            member: Some(member),
            max_learners: self.settings.max_learners,
        };
        Ok(self.consensus.propose(change).await?)
    }

    fn voters(&self) -> Vec<Member> {
        let members = self.published.members();
        let voters = members.iter().filter(|member| !member.is_learner);
        voters.cloned().collect()
    }

    /// How many of `members` this one has been connected to for a while;
    /// itself counts.
    fn connected(&self, members: &[Member]) -> usize {
        let is_connected = |member: &&Member| {
            member.id == self.member_id
                || self
                    .peers
                    .is_connected(member.id)
                    .is_some_and(|since| since >= HEALTH_INTERVAL)
        };
        members.iter().filter(is_connected).count()
    }
}

/// Whether another attempt, perhaps at another leader, may do better: none was
/// found, or it could not be reached. A refusal stands.
fn is_transient(error: &Status) -> bool {
    let is_ours = error.message().starts_with("etcdserver: ");
    [status::NOT_LEADER.text, status::NO_LEADER.text].contains(&error.message())
        || (error.code() == tonic::Code::Unavailable && !is_ours)
}

fn quorum(members: usize) -> usize {
    members / 2 + 1
}

fn started(voters: &[Member]) -> usize {
    voters.iter().filter(|each| !each.name.is_empty()).count()
}

/// With one more voter, which has not started, the started ones must still be
/// a quorum. The second member of a cluster is let in all the same: there is no
/// other way to grow.
fn may_add_voter(voters: &[Member]) -> bool {
    let is_second = voters.len() == 1 && started(voters) == 1;
    is_second || started(voters) >= quorum(voters.len() + 1)
}

/// With one more member that is not there, a learner even, those that are
/// connected must be a quorum (etcdserver/util.go). Who is alone always is.
fn may_grow(connected: usize, voters: usize) -> bool {
    voters == 1 || connected >= quorum(voters + 1)
}

/// Counts the learner among the started ones: it has the leader's log.
fn may_promote(voters: &[Member]) -> bool {
    started(voters) + 1 >= quorum(voters.len() + 1)
}

/// Without this voter, the started ones must still be a quorum; somebody has
/// to be left.
fn may_remove_voter(voters: &[Member], id: u64) -> bool {
    let rest = voters.iter().filter(|each| each.id != id);
    let rest: Vec<Member> = rest.cloned().collect();
    !rest.is_empty() && started(&rest) >= quorum(rest.len())
}

fn is_ready(matched: u64, leader: u64) -> bool {
    u128::from(matched) * 100 >= u128::from(leader) * u128::from(READY_PERCENT)
}

/// A member that has been added and not started (CLU-1). Its id is made of the
/// time too, so that one which is removed and added again gets another
/// (CLU-4).
fn new_member(mut peer_urls: Vec<String>, is_learner: bool, now: SystemTime) -> Member {
    peer_urls.sort();
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let digest = Sha1::digest(peer_urls.concat() + &seconds.to_string());
    Member {
        id: u64::from_be_bytes(std::array::from_fn(|position| digest[position])),
        peer_ur_ls: peer_urls,
        is_learner,
        ..Member::default()
    }
}

/// CLU-6: at least one URL, each a scheme, a host and a port.
fn check_urls(urls: &[String]) -> Result<(), Refusal> {
    let is_good = |url: &String| {
        if let Some(rest) = ["unix://", "unixs://"]
            .iter()
            .find_map(|s| url.strip_prefix(s))
        {
            return !rest.is_empty();
        }
        let Ok(uri) = url.parse::<Uri>() else {
            return false;
        };
        let has_path = url
            .split_once("://")
            .is_none_or(|(_, rest)| rest.contains('/'));
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.port_u16().is_some()
            && uri.query().is_none()
            && !has_path
    };
    if urls.is_empty() || !urls.iter().all(is_good) {
        return Err(status::MEMBER_BAD_URLS);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voters(started: usize, all: usize) -> Vec<Member> {
        let member = |number: usize| Member {
            id: number as u64 + 1,
            name: if number < started {
                "m".to_owned()
            } else {
                String::new()
            },
            ..Member::default()
        };
        (0..all).map(member).collect()
    }

    /// CLU-7.
    #[test]
    fn a_voter_is_added_only_if_the_started_ones_stay_a_quorum() {
        assert!(may_add_voter(&voters(1, 1)), "the second one");
        assert!(!may_add_voter(&voters(1, 2)));
        assert!(may_add_voter(&voters(2, 2)));
        assert!(!may_add_voter(&voters(2, 3)));
        assert!(may_add_voter(&voters(3, 3)));
        assert!(may_add_voter(&voters(3, 4)));
        assert!(!may_add_voter(&voters(0, 1)));
    }

    /// CLU-7: as etcd's TestCtlV3MemberAddAsLearnerWithOneMemberDown has it.
    #[test]
    fn a_member_is_added_while_the_connected_ones_stay_a_quorum() {
        assert!(may_grow(1, 1));
        assert!(may_grow(2, 2) && !may_grow(1, 2));
        assert!(may_grow(3, 3) && !may_grow(2, 3));
        assert!(may_grow(3, 4) && !may_grow(2, 4));
        assert!(may_grow(4, 5) && !may_grow(3, 5));
    }

    /// CLU-8.
    #[test]
    fn a_voter_is_removed_only_if_the_started_ones_stay_a_quorum() {
        assert!(!may_remove_voter(&voters(1, 1), 1), "the last one");
        assert!(!may_remove_voter(&voters(1, 2), 1));
        assert!(may_remove_voter(&voters(1, 2), 2), "it has never started");
        assert!(may_remove_voter(&voters(2, 3), 3));
        assert!(!may_remove_voter(&voters(2, 3), 1));
        assert!(
            may_remove_voter(&voters(3, 3), 9),
            "the machine knows better"
        );
    }

    /// CLU-10.
    #[test]
    fn a_learner_is_promoted_when_it_is_close_to_the_leader() {
        assert!(is_ready(90, 100) && is_ready(100, 100));
        assert!(!is_ready(89, 100) && !is_ready(0, 1));
        assert!(is_ready(u64::MAX, u64::MAX));
        assert!(may_promote(&voters(1, 1)));
        assert!(!may_promote(&voters(1, 3)));
    }

    /// CLU-6.
    #[test]
    fn urls_of_peers_have_a_scheme_and_a_port_and_no_more() {
        let check = |urls: &[&str]| {
            let urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
            check_urls(&urls)
        };
        let good = [
            "http://a:1",
            "https://[::1]:2380",
            "unix://a",
            "unixs://localhost:b",
        ];
        assert_eq!(check(&good), Ok(()));
        for bad in [
            "",
            "a",
            "a:1",
            "http://a",
            "http://a:1/",
            "http://a:1/b",
            "ftp://a:1",
            "unix://",
            "http://a:1?b",
        ] {
            assert_eq!(
                check(&["http://a:1", bad]),
                Err(status::MEMBER_BAD_URLS),
                "{bad:?}"
            );
        }
        assert_eq!(check(&[]), Err(status::MEMBER_BAD_URLS));
    }

    /// CLU-4, recorded from etcd 3.7.1.
    #[test]
    fn ids_of_added_members_are_etcds() {
        let now = UNIX_EPOCH + Duration::from_secs(1_795_203_247);
        let member = new_member(vec!["http://127.0.0.1:21480".to_owned()], true, now);
        assert_eq!(member.id, 0x0fb1_7a96_4969_e09a);
    }

    #[test]
    fn a_member_that_returns_gets_another_id() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let urls = vec!["http://b:1".to_owned(), "http://a:1".to_owned()];
        let first = new_member(urls.clone(), true, at(1_700_000_000));
        assert_eq!(first.peer_ur_ls, ["http://a:1", "http://b:1"]);
        assert!(first.is_learner && first.name.is_empty());
        assert_eq!(first, new_member(urls.clone(), true, at(1_700_000_000)));
        assert_ne!(first.id, new_member(urls, true, at(1_700_000_001)).id);
    }
}
