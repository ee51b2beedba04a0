//! Clock-driven loops.
//!
//! Each of them watches a clock and may do nothing but propose commands, so
//! that whatever it causes happens on every member alike. They act only while
//! this member leads, and end when consensus stops. `node` spawns one task for
//! each.

pub mod auto_compact;
pub mod check_hash;
pub mod checkpoint_leases;
pub mod expire_leases;
