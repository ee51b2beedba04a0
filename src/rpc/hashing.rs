//! Hashes of the store, one at a time.
//!
//! A hash reads all that the store holds and keeps tens of megabytes while it
//! does. Whoever asks while one is computed waits for its turn, so that many who
//! ask cost no more than one: neither memory, nor the threads that long reads
//! need.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::Status;

use super::{header, run_blocking, status};
use crate::mvcc::Store;
use crate::proto::etcdserverpb::HashKvResponse;

/// For clients and other members alike. Clones share the turn.
#[derive(Clone)]
pub(super) struct Hashing {
    store: Store,
    header: header::Source,
    turn: Arc<Semaphore>,
}

impl Hashing {
    pub(super) fn new(store: Store, header: header::Source) -> Hashing {
        Hashing {
            store,
            header,
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// MNT-18.
    pub(super) async fn hash(&self) -> Result<u32, Status> {
        self.in_turn(|store| Ok(store.hash()?)).await
    }

    /// MNT-19.
    pub(super) async fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, Status> {
        let found = self
            .in_turn(move |store| Ok(store.hash_kv(revision)?))
            .await?;
        Ok(HashKvResponse {
            header: self.header.header(found.revision),
            hash: found.hash,
            compact_revision: found.compact_revision,
            hash_revision: found.hash_revision,
        })
    }

    /// The turn lasts until the work has ended, also when nobody waits for it
    /// any more.
    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let turn = self.turn.clone().acquire_owned().await;
        let turn = turn.map_err(|_| Status::from(status::STOPPED))?;
        let store = self.store.clone();
        run_blocking(move || {
            let _turn = turn;
            work(&store)
        })
        .await
    }
}
