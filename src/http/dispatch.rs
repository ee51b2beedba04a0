//! Which side of a port answers a request, as at etcd: without TLS all of HTTP/2
//! is gRPC and nothing else; with TLS a request is gRPC by its content type. Calls
//! of pages (gRPC-Web) come in either version of HTTP, and pass the checks that
//! plain HTTP passes.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::routing::future::RouteFuture;
use http::{Request, Response, Version, header};
use http_body_util::Either;
use hyper::body::Incoming;
use tower::Service as _;

use super::access::{Access, Cors, Verdict, is_preflight, is_web};
use super::listener::{Services, Side};
use super::slices::Sliced;

/// Extension of plain HTTP requests: whether they came over TLS.
#[derive(Debug, Clone, Copy)]
pub(super) struct IsTls(pub(super) bool);

/// Sends each request of a connection to the side that answers it.
pub(super) struct Dispatch<G> {
    pub(super) services: Services<G>,
    pub(super) is_tls: IsTls,
}

impl<G: Side> hyper::service::Service<Request<Incoming>> for Dispatch<G> {
    type Response = Response<Sliced<Either<G::Body, Body>>>;
    type Error = Infallible;
    type Future = Answer<G::Future>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        // Services are always ready, and a clone is a counter.
        match &self.services {
            Services::Both { grpc, access, .. } if is_web(&request) => {
                self.answer_web(grpc, access, request)
            }
            Services::Both { grpc, .. } if self.is_call(&request) => {
                Answer::Grpc(grpc.clone().call(request))
            }
            Services::Both { http, .. } => {
                request.extensions_mut().insert(self.is_tls);
                Answer::Http(http.clone().call(request))
            }
            Services::Grpc { grpc, access } if is_web(&request) || is_preflight(&request) => {
                self.answer_web(grpc, access, request)
            }
            Services::Grpc { grpc, .. } => Answer::Grpc(grpc.clone().call(request)),
            Services::One(side) => {
                request.extensions_mut().insert(self.is_tls);
                Answer::Grpc(side.clone().call(request))
            }
        }
    }
}

impl<G: Side> Dispatch<G> {
    fn is_call(&self, request: &Request<Incoming>) -> bool {
        let is_http2 = request.version() == Version::HTTP_2;
        if self.is_tls.0 {
            is_http2 && names_grpc(request)
        } else {
            // A proxy may pass on what a browser asks.
            is_http2 && !is_preflight(request)
        }
    }

    fn answer_web(
        &self,
        grpc: &G,
        access: &Access,
        request: Request<Incoming>,
    ) -> Answer<G::Future> {
        match access.judge(&request, self.is_tls.0) {
            Verdict::Answered(response) => Answer::Ready(Some(Box::new(response))),
            Verdict::Passed(cors) => Answer::Web(grpc.clone().call(request), Some(Box::new(cors))),
        }
    }
}

/// The answer of one of the two sides.
pub(super) enum Answer<F> {
    Grpc(F),
    Http(RouteFuture<Infallible>),
    /// With what the page's browser is told.
    Web(F, Option<Box<Cors>>),
    /// Taken when it is given.
    Ready(Option<Box<Response<Body>>>),
}

impl<F, B> Future for Answer<F>
where
    F: Future<Output = Result<Response<B>, Infallible>> + Unpin,
{
    type Output = Result<Response<Sliced<Either<B, Body>>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = match self.get_mut() {
            Answer::Grpc(answer) => Pin::new(answer)
                .poll(cx)
                .map_ok(|response| response.map(Either::Left)),
            Answer::Http(answer) => Pin::new(answer)
                .poll(cx)
                .map_ok(|response| response.map(Either::Right)),
            Answer::Web(answer, cors) => Pin::new(answer).poll(cx).map_ok(|mut response| {
                if let Some(cors) = cors.take() {
                    cors.mark(response.headers_mut());
                }
                response.map(Either::Left)
            }),
            Answer::Ready(response) => {
                let response = response.take().map(|response| *response);
                Poll::Ready(Ok(response.unwrap_or_default().map(Either::Right)))
            }
        };
        polled.map_ok(|response| response.map(Sliced::new))
    }
}

/// gRPC names itself in the content type. Anywhere in it, says etcd; the library
/// refuses what is not quite one.
fn names_grpc(request: &Request<Incoming>) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let content_type = request.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| {
        value
            .as_bytes()
            .windows(GRPC.len())
            .any(|part| part == GRPC)
    })
}
