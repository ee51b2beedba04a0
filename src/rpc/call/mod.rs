//! What happens around every call, whichever service it is for.
//!
//! [`Services`] finds the service of a call by its path, and looks only at
//! headers, at the framing of messages and at the final status. It counts
//! (`methods`), reads the metadata that concern every call (`metadata`), ends
//! calls whose time or leader is up (`cut_off`), and says in the words of Go's
//! gRPC library what tonic says in its own (`wording`). Messages are not
//! decoded here. Calls of browsers (gRPC-Web) pass a translator on the way;
//! the others do not pay for it.

mod body;
mod cut_off;
mod metadata;
mod methods;
mod wording;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version, header};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{Layer as _, Service};

use crate::rpc::status;
use body::{RequestBody, ResponseBody};
use cut_off::CutOff;
pub(super) use cut_off::Leadership;
pub(super) use methods::initialize as initialize_metrics;
use methods::{Method, Record};

/// All services, with everything around their calls. A clone is a counter.
#[derive(Clone)]
pub struct Services {
    calls: Calls,
    web: GrpcWebService<Calls>,
}

#[derive(Clone)]
struct Calls {
    table: Arc<Table>,
}

struct Table {
    /// By path, `/package.Service/Method`.
    methods: HashMap<&'static str, (&'static Method, Arc<dyn Answer>)>,
    names: Vec<&'static str>,
    leadership: Leadership,
}

/// What a service is to answer with.
type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// A generated service, whichever.
trait Answer: Send + Sync {
    fn answer(&self, request: Request<RequestBody>) -> Answering;
}

impl<S> Answer for S
where
    S: Service<
            Request<RequestBody>,
            Response = Response<Body>,
            Error = Infallible,
            Future = Answering,
        > + Clone
        + Send
        + Sync,
{
    fn answer(&self, request: Request<RequestBody>) -> Answering {
        // Always ready; a clone is a counter and the limits.
        self.clone().call(request)
    }
}

impl Services {
    pub(super) fn new(leadership: Leadership) -> Services {
        Services::of(Table {
            methods: HashMap::new(),
            names: Vec::new(),
            leadership,
        })
    }

    fn of(table: Table) -> Services {
        let calls = Calls {
            table: Arc::new(table),
        };
        Services {
            web: GrpcWebLayer::new().layer(calls.clone()),
            calls,
        }
    }

    /// Adds a service; only while there is no clone.
    pub(super) fn add<S>(self, service: S) -> Services
    where
        S: Service<
                Request<RequestBody>,
                Response = Response<Body>,
                Error = Infallible,
                Future = Answering,
            > + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
    {
        drop(self.web);
        let mut table = Arc::into_inner(self.calls.table).expect("services are added at the start");
        let service: Arc<dyn Answer> = Arc::new(service);
        for (path, method) in methods::of_service(S::NAME) {
            table.methods.insert(path, (method, Arc::clone(&service)));
        }
        table.names.push(S::NAME);
        Services::of(table)
    }
}

impl<B> Service<Request<B>> for Services
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = CallFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> CallFuture {
        // What is neither HTTP/2 nor a browser's is refused there too.
        if request.version() == Version::HTTP_2 && !is_web(request.headers()) {
            return self.calls.start(request.map(Body::new));
        }
        let call = self.web.call(request);
        CallFuture::Web(Box::pin(call))
    }
}

fn is_web(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc-web"))
}

/// As the translator for browsers sees the calls.
impl Service<Request<Body>> for Calls {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = CallFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> CallFuture {
        self.start(request)
    }
}

impl Calls {
    fn start(&self, request: Request<Body>) -> CallFuture {
        let path = request.uri().path();
        let Some((method, service)) = self.table.methods.get(path) else {
            return CallFuture::Refused(Some(self.table.unknown(path)));
        };
        let record = Record::start(method);
        let (mut head, body) = request.into_parts();
        let cut_off = match self.table.admit(method, &mut head.headers) {
            Ok(cut_off) => cut_off,
            Err(refusal) => {
                record.finish(refusal.code());
                return CallFuture::Refused(Some(refusal));
            }
        };
        let request = Request::from_parts(head, RequestBody::new(body, method));
        CallFuture::Running(Running {
            answering: service.answer(request),
            record: Some(record),
            cut_off,
        })
    }
}

impl Table {
    /// What the metadata say before the call begins: a refusal, or how it may
    /// be cut off.
    fn admit(&self, method: &Method, headers: &mut HeaderMap) -> Result<Option<CutOff>, Status> {
        if self.leadership.is_learner() && !method.is_served_by_learners() {
            return Err(status::NOT_SUPPORTED_FOR_LEARNER.into());
        }
        let metadata = metadata::read(headers);
        metadata::count_client(method, metadata.client_api_version)?;
        if metadata.requires_leader {
            self.leadership.check()?;
        }
        let leadership =
            (metadata.requires_leader && !method.is_unary()).then_some(&self.leadership);
        let cut_off = cut_off::new(metadata.timeout, leadership);
        if metadata.would_compress {
            metadata::keep_plain(headers);
        }
        Ok(cut_off)
    }

    /// The refusal of a path that is not in the table.
    fn unknown(&self, path: &str) -> Status {
        let named = path.strip_prefix('/').and_then(|path| path.split_once('/'));
        match named {
            Some((service, method)) if !method.is_empty() && self.names.contains(&service) => {
                let method = method.rsplit('/').next().unwrap_or_default();
                wording::unknown_method(method, service)
            }
            _ => wording::unknown_service(path),
        }
    }
}

/// The part of a call up to the head of its response.
pub enum CallFuture {
    Refused(Option<Status>),
    Running(Running),
    Web(Answering),
}

pub struct Running {
    answering: Answering,
    /// Taken by the response's body, which sees the end of the call.
    record: Option<Record>,
    cut_off: Option<CutOff>,
}

impl Future for CallFuture {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            CallFuture::Refused(status) => {
                let status = status
                    .take()
                    .unwrap_or_else(|| Status::internal("polled again"));
                Poll::Ready(Ok(plain(status.into_http())))
            }
            CallFuture::Running(running) => running.poll(cx).map(Ok),
            CallFuture::Web(answering) => answering.as_mut().poll(cx).map_ok(plain),
        }
    }
}

/// A response that is not watched, or was before.
fn plain(response: Response<Body>) -> Response<ResponseBody> {
    response.map(ResponseBody::plain)
}

impl Running {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Response<ResponseBody>> {
        if let Poll::Ready(Ok(response)) = self.answering.as_mut().poll(cx) {
            return Poll::Ready(self.respond(response));
        }
        if let Some(cut_off) = &mut self.cut_off
            && let Poll::Ready(refusal) = cut_off.as_mut().poll(cx)
        {
            if let Some(record) = self.record.take() {
                record.finish(refusal.code);
            }
            return Poll::Ready(plain(Status::from(refusal).into_http()));
        }
        Poll::Pending
    }

    fn respond(&mut self, mut response: Response<Body>) -> Response<ResponseBody> {
        let Some(record) = self.record.take() else {
            return plain(response);
        };
        // A call that fails before its first message has its status in the
        // head, and no body.
        if let Some(code) = wording::final_code(response.headers_mut()) {
            record.finish(code);
            return plain(response);
        }
        let cut_off = self.cut_off.take().filter(|_| !record.is_unary());
        response.map(|body| ResponseBody::new(body, record, cut_off))
    }
}
