//! Renewals and remaining times of leases, which only the leader knows
//! (LEA-22). Any member can be asked: the others pass it on.
//!
//! Owns the proof that an answer came from the leader. A member that was cut
//! off does not know yet that another one leads, and that the other one has
//! revoked or shortened what it still believes in. So a renewal is told to the
//! client only after a majority has confirmed, in a read barrier begun after
//! the renewal, that this member leads in the same term. Barriers that begin
//! together share one round of messages, so a thousand keep-alives cost hardly
//! more than one; a sole voter needs none. Then:
//!
//! - Whoever leads next was elected after that confirmation, so the full time
//!   it gives each lease ends after the time that the client was promised.
//! - What was revoked, and acknowledged to anybody, before the call is applied
//!   here at the end of the barrier, and the answer is that the lease is gone.
//! - A lease that seems unknown may have been granted through another member
//!   and not be applied here: it is looked up again after a barrier.
//!
//! etcd asks for such a round only when its clock has seen no heartbeats for a
//! while (`ensureLeadership`), and trusts the clock otherwise.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;

use super::status;
use crate::consensus::{Consensus, Peers, ProposeError};
use crate::lease::lessor::Renewal;
use crate::lease::{Lessor, table};
use crate::machine::command::{LeaseCheckpoint, LeaseCheckpoints};
use crate::proto::etcdserverpb::{LeaseTimeToLiveRequest, LeaseTimeToLiveResponse};
use crate::storage::Engine;

/// How long to wait before asking again after a failed attempt.
const RETRY: Duration = Duration::from_millis(50);

pub(super) struct LeaseTimes {
    consensus: Consensus,
    lessor: Arc<Lessor>,
    engine: Arc<Engine>,
    peers: Peers,
    request_timeout: Duration,
}

/// This member does not lead, or does so no more.
struct NotLeading;

impl From<ProposeError> for NotLeading {
    fn from(_: ProposeError) -> NotLeading {
        NotLeading
    }
}

impl LeaseTimes {
    /// Questions wait for a leader's answer up to `request_timeout`.
    pub(super) fn new(
        consensus: Consensus,
        lessor: Arc<Lessor>,
        engine: Arc<Engine>,
        peers: Peers,
        request_timeout: Duration,
    ) -> LeaseTimes {
        LeaseTimes {
            consensus,
            lessor,
            engine,
            peers,
            request_timeout,
        }
    }

    /// Starts a lease's time anew; answers its TTL, or 0 of a lease that is
    /// gone (LEA-18).
    pub(super) async fn renew(&self, id: i64) -> Result<i64, Status> {
        self.ask_leader(
            || self.renew_here(id),
            |leader| self.peers.lease_keep_alive(leader, id),
        )
        .await
    }

    /// Without a header.
    pub(super) async fn time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Status> {
        self.ask_leader(
            || self.time_to_live_here(request),
            |leader| self.peers.lease_time_to_live(leader, request),
        )
        .await
    }

    /// [`LeaseTimes::renew`] for another member that took this one for the
    /// leader.
    pub(super) async fn renew_for_peer(&self, id: i64) -> Result<i64, Status> {
        let answer = self.renew_as_leader(id).await;
        answer.map_err(|NotLeading| status::NOT_LEADER.into())
    }

    pub(super) async fn time_to_live_for_peer(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Status> {
        let answer = self.time_to_live_here(request).await?;
        answer.map_err(|NotLeading| status::NOT_LEADER.into())
    }

    /// Repeats until the leader has answered, whoever that is at the time
    /// (LEA-23, LEA-24a).
    async fn ask_leader<T, Here, There>(
        &self,
        here: impl Fn() -> Here,
        there: impl Fn(u64) -> There,
    ) -> Result<T, Status>
    where
        Here: Future<Output = Result<Result<T, NotLeading>, Status>>,
        There: Future<Output = Result<T, Status>>,
    {
        let deadline = Instant::now() + self.request_timeout;
        loop {
            let consensus = self.consensus.status();
            let attempt = async {
                if consensus.is_leader {
                    return here().await.map(Result::ok);
                }
                if consensus.leader == 0 {
                    return Ok(None);
                }
                // A leader out of reach, or one that is no leader any more.
                Ok(there(consensus.leader).await.ok())
            };
            tokio::select! {
                answer = tokio::time::timeout_at(deadline, attempt) => match answer {
                    Ok(Ok(Some(answer))) => return Ok(answer),
                    Ok(Err(status)) => return Err(status),
                    Ok(Ok(None)) | Err(_) => {}
                },
                () = self.consensus.stopped() => return Err(status::STOPPED.into()),
            }
            if Instant::now() + RETRY >= deadline {
                let has_leader = self.consensus.status().leader != 0;
                let refusal = if has_leader {
                    status::TIMEOUT
                } else {
                    status::NO_LEADER
                };
                return Err(refusal.into());
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn renew_here(&self, id: i64) -> Result<Result<i64, NotLeading>, Status> {
        Ok(self.renew_as_leader(id).await)
    }

    async fn renew_as_leader(&self, id: i64) -> Result<i64, NotLeading> {
        let mut is_applied = false;
        loop {
            let term = self.lead()?;
            match self.lessor.renew(id) {
                Renewal::Renewed {
                    ttl_seconds,
                    has_checkpoint,
                } => {
                    if has_checkpoint {
                        self.clear_checkpoint(id, term).await?;
                    } else {
                        self.consensus.read_barrier().await?;
                    }
                    self.confirm(term)?;
                    if self.lessor.remaining(id).is_some() {
                        return Ok(ttl_seconds);
                    }
                    // Revoked meanwhile, or a long wait has used it up: the
                    // next round says which.
                    is_applied = true;
                }
                Renewal::NotFound if is_applied => return Ok(0),
                Renewal::NotFound => {
                    self.consensus.read_barrier().await?;
                    is_applied = true;
                }
                // Too late to revive it, too early to say that it is gone
                // (LEA-19).
                Renewal::Expired => self.lessor.revocation(id).await,
            }
        }
    }

    /// Puts on record that the lease has its full time again. An entry of this
    /// term that was committed also proves that this member leads.
    async fn clear_checkpoint(&self, id: i64, term: u64) -> Result<(), ProposeError> {
        let clearing = LeaseCheckpoints {
            checkpoints: vec![LeaseCheckpoint {
                id,
                remaining_seconds: 0,
            }],
            term,
            sequence: self.lessor.next_sequence(),
        };
        self.consensus.propose_first(clearing).await
    }

    async fn time_to_live_here(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Result<Result<LeaseTimeToLiveResponse, NotLeading>, Status> {
        let LeaseTimeToLiveRequest { id, keys } = request;
        let Ok(term) = self.lead() else {
            return Ok(Err(NotLeading));
        };
        if self.consensus.read_barrier().await.is_err() || self.confirm(term).is_err() {
            return Ok(Err(NotLeading));
        }
        let mut response = LeaseTimeToLiveResponse {
            id,
            ttl: -1,
            ..LeaseTimeToLiveResponse::default()
        };
        if let Some(remaining) = self.lessor.remaining(id) {
            response.ttl = remaining.ttl_seconds;
            response.granted_ttl = remaining.granted_ttl_seconds;
            if keys {
                response.keys = table::attached_keys(&self.engine, id)?;
            }
        }
        Ok(Ok(response))
    }

    /// The term in which this member leads, with the lessor's clock set for it.
    fn lead(&self) -> Result<u64, NotLeading> {
        let consensus = self.consensus.status();
        if !consensus.is_leader {
            self.lessor.follow();
            return Err(NotLeading);
        }
        self.lessor.lead(consensus.term, std::time::Instant::now());
        Ok(consensus.term)
    }

    /// Whether this member has led in `term` all the time: nobody leads twice
    /// in a term.
    fn confirm(&self, term: u64) -> Result<(), NotLeading> {
        let consensus = self.consensus.status();
        if consensus.is_leader && consensus.term == term {
            Ok(())
        } else {
            Err(NotLeading)
        }
    }
}
