//! Whether what clients and watchers have seen is what etcd promises.
//!
//! [`timeline`] is the order of all revisions that everything else is compared
//! with; [`linear`] checks requests, [`leases`] the ends of leases, [`watches`]
//! what watchers got. All of them look at a finished trial, and each has tests
//! that plant a fault and see it found.

pub mod leases;
pub mod linear;
#[cfg(test)]
mod planted;
#[cfg(test)]
mod planted_watches;
pub mod timeline;
pub mod watches;
