//! What happens around every call, whichever service it is for.
//!
//! [`Services`] finds the service of a call by its path, and looks only at
//! headers, at the framing of messages and at the final status. It refuses what
//! Go's gRPC library refuses by the head (`head`, `metadata`) or by the framing
//! of messages (`request_body`), counts (`methods`), ends calls whose time or
//! leader is up (`cut_off`), and says in that library's words what tonic says in
//! its own (`wording`). Messages are not decoded here. Calls of browsers (gRPC-Web) pass a translator on the way;
//! the others do not pay for it.

mod cut_off;
mod framing;
mod head;
mod metadata;
mod methods;
mod request_body;
mod response_body;
mod wording;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Version, header};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{Layer as _, Service};

use crate::rpc::status;
use cut_off::CutOff;
pub(super) use cut_off::Leadership;
use head::Head;
use metadata::{Encoding, Metadata};
pub(super) use methods::initialize as initialize_metrics;
use methods::{Method, Record};
use request_body::{Limits, RequestBody};
use response_body::ResponseBody;

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
    max_message_bytes: usize,
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
    /// Requests of more than `max_message_bytes` are refused (LIM-2).
    pub(super) fn new(leadership: Leadership, max_message_bytes: usize) -> Services {
        Services::of(Table {
            methods: HashMap::new(),
            names: Vec::new(),
            leadership,
            max_message_bytes,
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
        let (mut head, body) = request.into_parts();
        let Head {
            metadata,
            answer_type,
        } = match head::read(&head) {
            Ok(read) => read,
            Err((refusal, answer_type)) => {
                return CallFuture::refused(refusal.into_response(), answer_type);
            }
        };
        // With the query, which no method has.
        let path = head.uri.path_and_query().map_or("", |path| path.as_str());
        let Some((method, service)) = self.table.methods.get(path) else {
            let refusal = wording::unknown_path(path, &self.table.names);
            return CallFuture::refused(refusal.into_http(), answer_type);
        };
        if let Encoding::Unknown(encoding) = metadata.encoding {
            let refusal = wording::unknown_encoding(encoding);
            return CallFuture::refused(refusal.into_http(), answer_type);
        }
        let record = Record::start(method);
        let cut_off = match self.table.admit(method, &metadata) {
            Ok(cut_off) => cut_off,
            Err(refusal) => {
                record.finish(refusal.code());
                return CallFuture::refused(refusal.into_http(), answer_type);
            }
        };
        let is_gzip = metadata.encoding == Encoding::Gzip;
        if metadata.names_encodings {
            metadata::settle_encoding(&mut head.headers, is_gzip);
        }
        let limits = Limits {
            max_message_bytes: self.table.max_message_bytes,
            may_compress: is_gzip,
        };
        let request = Request::from_parts(head, RequestBody::new(body, method, limits));
        CallFuture::Running(Running {
            answering: service.answer(request),
            record: Some(record),
            cut_off,
            answer_type,
        })
    }
}

impl Table {
    /// What the metadata say before the call begins: a refusal, or how it may
    /// be cut off.
    fn admit(&self, method: &Method, metadata: &Metadata<'_>) -> Result<Option<CutOff>, Status> {
        if self.leadership.is_learner() && !method.is_served_by_learners() {
            return Err(status::NOT_SUPPORTED_FOR_LEARNER.into());
        }
        metadata::count_client(method, metadata.client_api_version)?;
        if metadata.requires_leader {
            self.leadership.check()?;
        }
        let leadership =
            (metadata.requires_leader && !method.is_unary()).then_some(&self.leadership);
        Ok(cut_off::new(metadata.timeout, leadership))
    }
}

/// The part of a call up to the head of its response.
pub enum CallFuture {
    /// Boxed, since those are few.
    Refused(Option<Box<Response<Body>>>),
    Running(Running),
    Web(Answering),
}

pub struct Running {
    answering: Answering,
    /// Taken by the response's body, which sees the end of the call.
    record: Option<Record>,
    cut_off: Option<CutOff>,
    answer_type: Option<HeaderValue>,
}

impl CallFuture {
    fn refused(mut response: Response<Body>, answer_type: Option<HeaderValue>) -> CallFuture {
        head::set_type(&mut response, answer_type);
        CallFuture::Refused(Some(Box::new(response)))
    }
}

impl Future for CallFuture {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            CallFuture::Refused(response) => {
                let response = response.take().map_or_else(
                    || Status::internal("polled again").into_http(),
                    |response| *response,
                );
                Poll::Ready(Ok(plain(response)))
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
            let mut response = Status::from(refusal).into_http();
            head::set_type(&mut response, self.answer_type.take());
            return Poll::Ready(plain(response));
        }
        Poll::Pending
    }

    fn respond(&mut self, mut response: Response<Body>) -> Response<ResponseBody> {
        head::set_type(&mut response, self.answer_type.take());
        let Some(record) = self.record.take() else {
            return plain(response);
        };
        // A call that fails before its first message has its status in the
        // head, and no body.
        if let Some(code) = wording::final_code(response.headers_mut(), record.kind()) {
            record.finish(code);
            return plain(response);
        }
        let cut_off = self.cut_off.take().filter(|_| !record.is_unary());
        response.map(|body| ResponseBody::new(body, record, cut_off))
    }
}
