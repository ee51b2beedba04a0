//! The response header: who answered, in which term, at which revision.
//!
//! Replies of the state machine carry only a revision (GEN-5); the services
//! add the rest here, to the outermost response alone.

use crate::consensus::Consensus;
use crate::proto::etcdserverpb::ResponseHeader;

/// What every header says about this member.
#[derive(Clone)]
pub struct Source {
    pub cluster_id: u64,
    pub member_id: u64,
    pub consensus: Consensus,
}

impl Source {
    /// Adds ids and term to `header`, and `revision` if the operation has not
    /// set one (GEN-1, GEN-2).
    pub fn fill(&self, header: &mut Option<ResponseHeader>, revision: i64) {
        let header = header.get_or_insert_default();
        header.cluster_id = self.cluster_id;
        header.member_id = self.member_id;
        header.raft_term = self.consensus.status().term;
        if header.revision == 0 {
            header.revision = revision;
        }
    }

    /// A whole header at `revision`.
    pub fn header(&self, revision: i64) -> Option<ResponseHeader> {
        let mut header = None;
        self.fill(&mut header, revision);
        header
    }
}
