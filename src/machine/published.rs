//! What other threads may read of the machine without asking it: the alarms
//! and the members, as of the last command that changed them.

use arc_swap::ArcSwap;

use crate::proto::etcdserverpb::{AlarmMember, Member};

/// Swapped whole by the apply thread, read without locks by rpc and http.
#[derive(Debug, Default)]
pub struct Published {
    alarms: ArcSwap<Vec<AlarmMember>>,
    members: ArcSwap<Vec<Member>>,
    /// Ids of those that have been members, ascending.
    removed: ArcSwap<Vec<u64>>,
}

impl Published {
    pub(super) fn new(
        alarms: Vec<AlarmMember>,
        members: Vec<Member>,
        removed: Vec<u64>,
    ) -> Published {
        Published {
            alarms: ArcSwap::from_pointee(alarms),
            members: ArcSwap::from_pointee(members),
            removed: ArcSwap::from_pointee(removed),
        }
    }

    /// The alarms that are up, ordered by member, then type.
    pub fn alarms(&self) -> std::sync::Arc<Vec<AlarmMember>> {
        self.alarms.load_full()
    }

    /// The members, ordered by id (CLU-2).
    pub fn members(&self) -> std::sync::Arc<Vec<Member>> {
        self.members.load_full()
    }

    /// Whether a member of this id has been removed.
    pub fn is_removed(&self, id: u64) -> bool {
        self.removed.load().binary_search(&id).is_ok()
    }

    pub(super) fn set_alarms(&self, alarms: Vec<AlarmMember>) {
        self.alarms.store(std::sync::Arc::new(alarms));
    }

    pub(super) fn set_members(&self, members: Vec<Member>, removed: Vec<u64>) {
        self.members.store(std::sync::Arc::new(members));
        self.removed.store(std::sync::Arc::new(removed));
    }
}
