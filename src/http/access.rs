//! Who may use the plain HTTP paths: browsers by origin (CORS), everybody by
//! the Host name they ask for (`--host-whitelist`, which stops pages that
//! rebind a DNS name to a local server). gRPC passes neither check, and the
//! Host check is for plaintext only: with TLS the certificate says whom the
//! client wanted. Behaviour of etcd's `embed/serve.go`.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::listener::IsTls;
use super::{error, plain};

/// What is let through. Empty lists, and the entry `*`, let all through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Origins as browsers send them, such as `https://example.com`.
    pub origins: Vec<String>,
    /// Host names, without ports.
    pub hosts: Vec<String>,
}

impl Access {
    pub(super) fn guard(self, router: Router) -> Router {
        router.layer(middleware::from_fn_with_state(Arc::new(self), check))
    }

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

async fn check(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let is_tls = request
        .extensions()
        .get::<IsTls>()
        .is_some_and(|is_tls| is_tls.0);
    if !is_tls && !access.allows_host(host_name(&request)) {
        let text = "This server does not answer to that host name. The names it answers to are \
                    set with --host-whitelist.";
        return error(StatusCode::MISDIRECTED_REQUEST, text);
    }
    let origin = access.allowed_origin(request.headers());
    // Every OPTIONS request is taken for a preflight.
    let mut response = if request.method() == Method::OPTIONS {
        plain(StatusCode::OK, String::new())
    } else {
        next.run(request).await
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        let methods = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let names = HeaderValue::from_static("accept, content-type, authorization");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names);
    }
    response
}

/// The name the client asked for, without port and without the brackets of an
/// IPv6 address. HTTP/2 has it in the URI, HTTP/1 in the Host header.
fn host_name(request: &Request) -> &str {
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
