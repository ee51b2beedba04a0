//! Leases: who holds which keys, and until when.
//!
//! Two halves that share no state. [`table`] is replicated: which leases
//! exist, for how many seconds they were granted and which keys hang on them;
//! it is part of the state machine and knows no clock. [`lessor`] is local to
//! this member: it knows when each lease ends and answers keep-alives. The
//! table's changes reach the lessor as effects of the log; what the lessor
//! finds expired goes back as revoke commands (`chores::expire_leases`).

pub mod lessor;
pub mod table;

pub use lessor::{Lessor, Remaining, Renewal};
pub use table::{GrantError, MetaRows, Table};
