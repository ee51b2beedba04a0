//! stele: a drop-in replacement for etcd, over RocksDB.

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

pub mod metrics;
