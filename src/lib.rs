//! stele: a drop-in replacement for etcd, over RocksDB.
//!
//! The modules in reading order. A request enters at [`rpc`], is ordered and
//! made durable by [`consensus`], applied by [`machine`] to [`mvcc`], stored
//! by [`storage`], and its changes leave through [`watch`]. `ARCHITECTURE.md`
//! holds the code map, the invariants and the table of who may import whom.

pub mod proto;

pub mod storage;

pub mod lease;
pub mod mvcc;

pub mod machine;
pub mod watch;

pub mod consensus;

pub mod chores;

pub mod http;
pub mod rpc;

pub mod cli;
pub mod config;
pub mod logging;
pub mod metrics;
pub mod node;
