//! Ends of calls that come neither from the service nor from the client: the
//! client's deadline has passed, or the leader it insists on is lost.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::watch;

use crate::consensus::Consensus;
use crate::rpc::status::{self, Refusal};

/// Resolves when the call has to end.
pub(super) type CutOff = Pin<Box<dyn Future<Output = Refusal> + Send>>;

/// `None` if nothing can end the call.
pub(super) fn new(timeout: Option<Duration>, leadership: Option<&Leadership>) -> Option<CutOff> {
    match (timeout, leadership) {
        (None, None) => None,
        (Some(timeout), None) => Some(Box::pin(elapsed(timeout))),
        (None, Some(leadership)) => Some(Box::pin(leadership.lost())),
        (Some(timeout), Some(leadership)) => {
            let lost = leadership.lost();
            Some(Box::pin(async move {
                tokio::select! {
                    refusal = elapsed(timeout) => refusal,
                    refusal = lost => refusal,
                }
            }))
        }
    }
}

async fn elapsed(timeout: Duration) -> Refusal {
    tokio::time::sleep(timeout).await;
    status::DEADLINE_EXCEEDED
}

/// Whether this member knows a leader, for calls with the metadata
/// `hasleader` (GEN-18, GEN-19).
pub(in crate::rpc) struct Leadership {
    consensus: Consensus,
    is_lost: watch::Receiver<bool>,
}

/// A leader is lost when none was known at so many looks in a row, one each
/// election timeout: an ordinary election does not end streams.
const LOOKS_WITHOUT_LEADER: u32 = 3;

impl Leadership {
    /// Starts to look at the leader; ends when the value is dropped. Must be
    /// called on the runtime.
    pub(in crate::rpc) fn follow(consensus: Consensus, election_timeout: Duration) -> Leadership {
        let (sender, is_lost) = watch::channel(false);
        tokio::spawn(look(consensus.clone(), election_timeout, sender));
        Leadership { consensus, is_lost }
    }

    /// Refuses a call while no leader is known.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        if self.consensus.status().leader == 0 {
            return Err(status::NO_LEADER);
        }
        Ok(())
    }

    /// Whether this member only learns: it answers little (CLU-11).
    pub(super) fn is_learner(&self) -> bool {
        self.consensus.status().is_learner
    }

    fn lost(&self) -> impl Future<Output = Refusal> + Send + 'static {
        let mut is_lost = self.is_lost.clone();
        async move {
            if is_lost.wait_for(|is_lost| *is_lost).await.is_err() {
                // Nobody looks any more: the server stops, and ends the
                // streams by itself.
                std::future::pending::<()>().await;
            }
            status::NO_LEADER
        }
    }
}

async fn look(consensus: Consensus, election_timeout: Duration, is_lost: watch::Sender<bool>) {
    let mut looks = 0;
    let mut interval = tokio::time::interval(election_timeout.max(Duration::from_millis(1)));
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = is_lost.closed() => return,
        }
        looks = if consensus.status().leader == 0 {
            looks + 1
        } else {
            0
        };
        let lost_now = looks >= LOOKS_WITHOUT_LEADER;
        is_lost.send_if_modified(|is_lost| std::mem::replace(is_lost, lost_now) != lost_now);
    }
}
