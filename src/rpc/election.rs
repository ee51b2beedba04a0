//! The Election service: not there yet, and says so.

use tonic::{Request, Response, Status};

use super::status;
use crate::proto::v3electionpb::election_server::Election;
use crate::proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};

pub(super) struct Service;

/// The recipe in clients needs nothing but KV, Watch and Lease.
fn not_served() -> Status {
    status::not_yet(
        "the election service comes with a later version; the elections of client libraries \
         (in Go: concurrency.NewElection) work",
    )
}

#[tonic::async_trait]
impl Election for Service {
    type ObserveStream = tokio_stream::Empty<Result<LeaderResponse, Status>>;

    async fn campaign(
        &self,
        _request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        Err(not_served())
    }

    async fn proclaim(
        &self,
        _request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        Err(not_served())
    }

    async fn leader(
        &self,
        _request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        Err(not_served())
    }

    async fn observe(
        &self,
        _request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        Err(not_served())
    }

    async fn resign(
        &self,
        _request: Request<ResignRequest>,
    ) -> Result<Response<ResignResponse>, Status> {
        Err(not_served())
    }
}
