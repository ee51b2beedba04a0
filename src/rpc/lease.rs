//! The Lease service. Grants and revocations pass the log; renewals and
//! remaining times are the leader's alone ([`super::lease_time`]), whichever
//! member is asked.

use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::header;
use super::lease_time::LeaseTimes;
use super::quota::{self, Quota};
use super::timing::{Kind, Timer};
use crate::consensus::Consensus;
use crate::lease::Lessor;
use crate::mvcc::Store;
use crate::proto::etcdserverpb::lease_server::Lease;
use crate::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, ResponseHeader,
};

pub(super) struct Service {
    consensus: Consensus,
    store: Store,
    lessor: Arc<Lessor>,
    times: Arc<LeaseTimes>,
    header: header::Source,
    quota: Arc<Quota>,
}

impl Service {
    pub(super) fn new(
        consensus: Consensus,
        store: Store,
        lessor: Arc<Lessor>,
        times: Arc<LeaseTimes>,
        header: header::Source,
        quota: Arc<Quota>,
    ) -> Service {
        Service {
            consensus,
            store,
            lessor,
            times,
            header,
            quota,
        }
    }

    fn fill(&self, header: &mut Option<ResponseHeader>) {
        self.header.fill(header, self.store.revision());
    }
}

#[tonic::async_trait]
impl Lease for Service {
    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let mut request = request.into_inner();
        self.quota.admit(quota::LEASE_BYTES).await?;
        let timer = Timer::request(Kind::LeaseGrant);
        while request.id == 0 {
            // Positive, 63 bits (LEA-1).
            request.id = rand::random::<i64>() & i64::MAX;
        }
        request.ttl = request.ttl.max(self.lessor.min_ttl_seconds());
        let mut reply = self.consensus.propose(request).await?;
        timer.succeed();
        self.fill(&mut reply.header);
        Ok(Response::new(reply))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let timer = Timer::request(Kind::LeaseRevoke);
        let mut reply = self.consensus.propose(request.into_inner()).await?;
        timer.succeed();
        self.fill(&mut reply.header);
        Ok(Response::new(reply))
    }

    /// Answers one by one, in order, and ends when the client's side has
    /// ended and all is answered (LEA-17, LEA-21).
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let times = self.times.clone();
        let (header, store) = (self.header.clone(), self.store.clone());
        let responses = request.into_inner().then(move |request| {
            let times = times.clone();
            // Before the renewal (LEA-20).
            let header = header.header(store.revision());
            async move {
                let id = request?.id;
                let ttl = times.renew(id).await?;
                Ok(LeaseKeepAliveResponse { header, id, ttl })
            }
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let mut response = self.times.time_to_live(request.into_inner()).await?;
        self.fill(&mut response.header);
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        _request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let leases = self.lessor.list().into_iter();
        let mut response = LeaseLeasesResponse {
            header: None,
            leases: leases.map(|id| LeaseStatus { id }).collect(),
        };
        self.fill(&mut response.header);
        Ok(Response::new(response))
    }
}
