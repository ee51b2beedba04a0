//! gRPC's health service, as etcd has it: the whole server is serving as soon
//! as it can be asked, and no service has a health of its own (http.md 7.2).

use std::collections::HashMap;
use std::pin::Pin;

use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::status;
use crate::proto::health::health_check_response::ServingStatus;
use crate::proto::health::health_server::Health;
use crate::proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};

/// The name of the whole server.
const SERVER: &str = "";

pub(super) struct Service {
    shutdown: CancellationToken,
}

impl Service {
    pub(super) fn new(shutdown: CancellationToken) -> Service {
        Service { shutdown }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[tonic::async_trait]
impl Health for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if request.get_ref().service == SERVER {
            Ok(Response::new(response(ServingStatus::Serving)))
        } else {
            Err(Status::not_found("unknown service"))
        }
    }

    async fn list(
        &self,
        _request: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        let server = (SERVER.to_owned(), response(ServingStatus::Serving));
        Ok(Response::new(HealthListResponse {
            statuses: HashMap::from([server]),
        }))
    }

    /// Nothing changes before the end.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let now = if request.get_ref().service == SERVER {
            ServingStatus::Serving
        } else {
            ServingStatus::ServiceUnknown
        };
        let shutdown = self.shutdown.clone();
        let responses = tokio_stream::iter([Some(now), None]).then(move |next| {
            let shutdown = shutdown.clone();
            async move {
                if let Some(status) = next {
                    return Ok(response(status));
                }
                shutdown.cancelled().await;
                Err(status::STOPPED.into())
            }
        });
        Ok(Response::new(Box::pin(responses)))
    }
}
