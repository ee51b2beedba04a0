//! Scripts that a member of a cluster need not answer as recorded from a server
//! that is alone, each with the reason. `STELE_COMPAT_CLUSTER` shows that real
//! etcd does not either.

use crate::member::Program;
use crate::server::{Kind, Role};

/// Where no follower of any server can.
const AT_A_FOLLOWER: [(&str, &str); 1] = [(
    "lease/list_follows_renewals",
    "renewals are the leader's, so the list of a follower does not follow them",
)];

/// Where a follower of etcd does not, and one of ours does.
const AT_A_FOLLOWER_OF_ETCD: [(&str, &str); 3] = [
    ("lease/grants_survive", NO_ORDER),
    ("lease/list", NO_ORDER),
    ("lease/vector_grants", NO_ORDER),
];

const NO_ORDER: &str = "etcd sorts leases by their end, which its followers do not know";

pub(crate) fn is_exempt(script: &str, kind: &Kind) -> bool {
    let is_named = |table: &[(&str, &str)]| table.iter().any(|(name, _)| *name == script);
    kind.role == Role::Follower
        && (is_named(&AT_A_FOLLOWER)
            || matches!(kind.program, Program::Etcd(_)) && is_named(&AT_A_FOLLOWER_OF_ETCD))
}
