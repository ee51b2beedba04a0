//! Who may use the plain HTTP paths, and gRPC from a page (gRPC-Web): browsers
//! by origin (CORS), everybody by the Host name they ask for
//! (`--host-whitelist`, which stops pages that rebind a DNS name to a local
//! server). Other gRPC passes neither check: no page can send it. The Host check
//! is for plaintext only: with TLS the certificate says whom the client wanted.
//! Behaviour of etcd's `embed/serve.go`, which knows no gRPC-Web; what browsers
//! need besides for that is ours.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::dispatch::IsTls;
use super::error;

const METHODS: HeaderValue = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
const HEADERS: HeaderValue = HeaderValue::from_static("accept, content-type, authorization");

/// Besides those what libraries for gRPC-Web send, and the metadata that etcd
/// knows.
const WEB_HEADERS: HeaderValue = HeaderValue::from_static(
    "accept, content-type, authorization, x-grpc-web, x-user-agent, grpc-timeout, token, \
     hasleader, client-api-version",
);

/// What a page may read of a failed call, whose status is in its head.
const WEB_EXPOSED: HeaderValue =
    HeaderValue::from_static("grpc-status, grpc-message, grpc-status-details-bin");

/// By this header, in its list of wanted ones, a browser's question is known to
/// be for gRPC-Web: all its libraries send it.
const WEB_MARK: &str = "x-grpc-web";

/// What is let through. Empty lists, and the entry `*`, let all through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Origins as browsers send them, such as `https://example.com`.
    pub origins: Vec<String>,
    /// Host names, without ports.
    pub hosts: Vec<String>,
}

/// Lets through to `router` who may.
pub(super) fn guard(access: Arc<Access>, router: Router) -> Router {
    router.layer(middleware::from_fn_with_state(access, check))
}

impl Access {
    fn allows_host(&self, host: &str) -> bool {
        allows(&self.hosts, host)
    }

    /// The value of `Access-Control-Allow-Origin` for a request.
    fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if allows(&self.origins, "*") {
            return Some(HeaderValue::from_static("*"));
        }
        let origin = headers.get(header::ORIGIN)?;
        allows(&self.origins, origin.to_str().ok()?).then(|| origin.clone())
    }
}

fn allows(list: &[String], wanted: &str) -> bool {
    list.is_empty() || list.iter().any(|entry| entry == "*" || entry == wanted)
}

/// What is to become of a request.
pub(super) enum Verdict {
    /// It has its answer.
    Answered(Response),
    /// It may go on; the answer is to be marked for the browser.
    Passed(Cors),
}

/// What browsers are told with an answer.
pub(super) struct Cors {
    /// None: nothing.
    origin: Option<HeaderValue>,
    is_web: bool,
}

impl Cors {
    pub(super) fn mark(self, headers: &mut HeaderMap) {
        let Some(origin) = self.origin else {
            return;
        };
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let allowed = if self.is_web { WEB_HEADERS } else { HEADERS };
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        if self.is_web {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, WEB_EXPOSED);
        }
    }
}

impl Access {
    pub(super) fn judge<B>(&self, request: &http::Request<B>, is_tls: bool) -> Verdict {
        if !is_tls && !self.allows_host(host_name(request)) {
            let text = "This server does not answer to that host name. The names it answers to \
                        are set with --host-whitelist.";
            return Verdict::Answered(error(StatusCode::MISDIRECTED_REQUEST, text));
        }
        let cors = Cors {
            origin: self.allowed_origin(request.headers()),
            is_web: is_web(request) || wants_web(request.headers()),
        };
        // Every OPTIONS request is taken for a preflight.
        if request.method() == Method::OPTIONS {
            let mut response = Response::new(Body::empty());
            cors.mark(response.headers_mut());
            return Verdict::Answered(response);
        }
        Verdict::Passed(cors)
    }
}

async fn check(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let is_tls = request
        .extensions()
        .get::<IsTls>()
        .is_some_and(|is_tls| is_tls.0);
    match access.judge(&request, is_tls) {
        Verdict::Answered(response) => response,
        Verdict::Passed(cors) => {
            let mut response = next.run(request).await;
            cors.mark(response.headers_mut());
            response
        }
    }
}

/// A call from a page.
pub(super) fn is_web<B>(request: &http::Request<B>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc-web"))
}

/// A browser asks whether a page may send something.
pub(super) fn is_preflight<B>(request: &http::Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn wants_web(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCESS_CONTROL_REQUEST_HEADERS)
        .iter()
        .filter_map(|names| names.to_str().ok())
        .flat_map(|names| names.split(','))
        .any(|name| name.trim().eq_ignore_ascii_case(WEB_MARK))
}

/// The name the client asked for, without port and without the brackets of an
/// IPv6 address. HTTP/2 has it in the URI, HTTP/1 in the Host header.
fn host_name<B>(request: &http::Request<B>) -> &str {
    let host = request
        .uri()
        .authority()
        .map(http::uri::Authority::as_str)
        .or_else(|| {
            request
                .headers()
                .get(header::HOST)
                .and_then(|host| host.to_str().ok())
        });
    let host = host.unwrap_or_default();
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}
