//! The Lock service: not there yet, and says so.

use tonic::{Request, Response, Status};

use super::status;
use crate::proto::v3lockpb::lock_server::Lock;
use crate::proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};

pub(super) struct Service;

/// The recipe in clients needs nothing but KV, Watch and Lease.
fn not_served() -> Status {
    status::not_yet(
        "the lock service comes with a later version; the locks of client libraries \
         (in Go: concurrency.NewMutex) work",
    )
}

#[tonic::async_trait]
impl Lock for Service {
    async fn lock(&self, _request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        Err(not_served())
    }

    async fn unlock(
        &self,
        _request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        Err(not_served())
    }
}
