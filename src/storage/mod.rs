//! Where bytes live: the only folder that knows RocksDB, and the data directory.
//!
//! It owns the columns, the layout of their keys, the engine's settings and
//! the promise that a [`Batch`] is applied whole or not at all. It does not
//! know what the bytes mean: no protobuf, no revisions, no leases.
//!
//! Durability is shared with the raft log and the division is strict. The raft
//! log is the only write-ahead log of the process; RocksDB runs without its
//! own. A batch is therefore *visible* when [`Engine::write`] returns and
//! *durable* only when a later [`Engine::flush`] has returned. What a crash
//! takes away is always a suffix of whole batches, over all columns alike
//! (flushes are atomic over columns), and the raft log, which is cut only
//! below a completed flush, brings exactly that suffix back.

mod batch;
mod checkpoint;
mod columns;
pub mod data_dir;
mod engine;
mod error;
mod generation;
pub mod keys;
mod options;
mod read;
mod state_dirs;
#[cfg(test)]
mod tests;

pub use batch::Batch;
pub use columns::Column;
pub use data_dir::{DataDir, open_data_dir};
pub use engine::Engine;
pub use error::{OpenError, StorageError};
pub(crate) use generation::Generation;
pub use options::Settings;
pub(crate) use read::{Bounds, Rows, Snapshot, Value};
