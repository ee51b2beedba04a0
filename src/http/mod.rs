//! The HTTP side of the client port, and the port itself.
//!
//! Owns the listeners (one port for gRPC and plain HTTP, with or without TLS:
//! [`listener`], [`tls`]) and the plain HTTP paths: health and readiness
//! (`health`), `/version`, `/metrics` and `/debug/vars`. It has no logic of
//! its own: what it reports comes from the [`Member`] it is given, what it
//! counts from [`crate::metrics`]. The facts it follows are in etcd's
//! `etcdhttp` and `embed/serve.go`.
//!
//! Left to others: everything behind gRPC (`rpc`). The JSON gateway under
//! `/v3/` comes later; its paths say so instead of answering 404.

mod access;
mod authority;
mod connection;
pub mod dial;
mod dispatch;
mod frames;
mod gather;
mod health;
pub mod listener;
mod paths;
mod pings;
mod slices;
pub mod tls;
mod url;

use std::sync::{Arc, OnceLock};

pub use axum::Router;
use axum::body::Body;
use axum::extract::State as Extract;
use axum::response::Response;
use axum::routing::any;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use serde::Serialize;

pub use access::Access;
pub use url::{Scheme, Url, UrlError};

use crate::metrics;

/// Body of a response in plain text, as Go's `http.Error` words it.
const TEXT_PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// A future that can be stored: what the asynchronous questions of [`Member`]
/// return.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the HTTP side asks of the member it speaks for. The node implements
/// it, so that nothing here knows the store or the machine.
pub trait Member: Send + Sync + 'static {
    /// Where consensus stands.
    fn status(&self) -> Status;

    /// The alarms that are up, in any order.
    fn alarms(&self) -> Vec<Alarm>;

    /// Reads one key of this member's own state. The error is shown to
    /// whoever probes.
    fn read_local(&self) -> Result<(), String>;

    /// Waits for a read barrier, then reads one key.
    fn read_linearizable(&self) -> BoxFuture<'_, Result<(), String>>;

    /// The cluster, as this member knows it. Asked on the peer port only.
    fn cluster(&self) -> Cluster {
        Cluster::default()
    }

    /// Brings the gauges up to date that nobody sets as things change (sizes,
    /// revisions, counts). Called before each scrape.
    fn refresh_metrics(&self);
}

/// Where consensus stands, for health checks and `/debug/vars`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    pub member_id: u64,
    /// 0 when no leader is known.
    pub leader: u64,
    pub term: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub is_learner: bool,
}

/// A cluster, as `/members` of the peer port shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    pub id: u64,
    /// By id.
    pub members: Vec<ClusterMember>,
}

/// In etcd's JSON (`server/etcdserver/api/membership/member.go`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ClusterMember {
    pub id: u64,
    #[serde(rename = "peerURLs")]
    pub peer_urls: Vec<String>,
    #[serde(rename = "isLearner", skip_serializing_if = "std::ops::Not::not")]
    pub is_learner: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(rename = "clientURLs", skip_serializing_if = "Vec::is_empty")]
    pub client_urls: Vec<String>,
}

/// An alarm, as far as probes tell alarms apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    NoSpace,
    Corrupt,
    Unknown,
}

/// What `/version` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Versions {
    /// Version of the API that is served, such as `3.7.3`. Clients split it
    /// at the dots and read integers.
    #[serde(rename = "etcdserver")]
    pub server: String,
    /// Version the cluster works at, such as `3.7.0`.
    #[serde(rename = "etcdcluster")]
    pub cluster: String,
    /// Version of the stored data's meaning, such as `3.7.0`.
    pub storage: String,
}

/// What all paths share. Cloning is cheap.
///
/// A state begins without a member: listeners for probes open before the
/// store does, and answer 503 until [`State::serve`] is called.
#[derive(Clone)]
pub struct State(Arc<Shared>);

struct Shared {
    versions: Versions,
    member: OnceLock<Arc<dyn Member>>,
}

impl State {
    pub fn new(versions: Versions) -> State {
        State(Arc::new(Shared {
            versions,
            member: OnceLock::new(),
        }))
    }

    /// From now on probes reach `member`. Later calls change nothing.
    pub fn serve(&self, member: Arc<dyn Member>) {
        // A second member would be a mistake of the caller without harm: the
        // first one stays.
        let _ = self.0.member.set(member);
    }

    fn member(&self) -> Option<&dyn Member> {
        self.0.member.get().map(|member| &**member)
    }
}

/// The paths of a client listener. `has_gateway` says whether `/v3/` is meant
/// to be served (`--enable-grpc-gateway`).
pub fn router(state: State, access: Arc<Access>, has_gateway: bool) -> Router {
    let mut router = probes()
        .route("/version", any(version))
        .route("/debug/vars", any(debug_vars));
    if has_gateway {
        router = router
            .route("/v3", any(gateway_root))
            .route("/v3/{*path}", any(gateway))
            .route("/v3beta/{*path}", any(gateway));
    }
    let router = router.fallback(not_found).with_state(state);
    access::guard(access, paths::tolerant(router))
}

/// The paths of a metrics listener: metrics and probes, nothing else.
pub fn metrics_router(state: State) -> Router {
    paths::tolerant(probes().fallback(not_found).with_state(state))
}

/// The plain HTTP paths of a peer listener: those of etcd's that tools ask.
/// What members say to each other is gRPC here, on the same port.
pub fn peer_router(state: State) -> Router {
    let router = Router::new()
        .route("/version", any(version))
        .route("/members", any(members))
        .fallback(not_found)
        .with_state(state);
    paths::tolerant(router)
}

fn probes() -> Router<State> {
    Router::new()
        .route("/metrics", any(scrape))
        .route("/health", any(health::health))
        .route("/livez", any(health::livez))
        .route("/livez/{check}", any(health::livez_check))
        .route("/readyz", any(health::readyz))
        .route("/readyz/{check}", any(health::readyz_check))
}

async fn version(Extract(state): Extract<State>, method: Method) -> Response {
    if method != Method::GET {
        return method_not_allowed();
    }
    match serde_json::to_string(&state.0.versions) {
        Ok(body) => json(StatusCode::OK, body),
        Err(reason) => error(StatusCode::INTERNAL_SERVER_ERROR, &reason.to_string()),
    }
}

async fn members(Extract(state): Extract<State>, method: Method) -> Response {
    if method != Method::GET {
        return method_not_allowed();
    }
    let Some(member) = state.member() else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "the member is starting");
    };
    let cluster = member.cluster();
    let body = match serde_json::to_string(&cluster.members) {
        Ok(body) => body + "\n",
        Err(reason) => return error(StatusCode::INTERNAL_SERVER_ERROR, &reason.to_string()),
    };
    let mut response = json(StatusCode::OK, body);
    if let Ok(id) = HeaderValue::try_from(format!("{:x}", cluster.id)) {
        response.headers_mut().insert("X-Etcd-Cluster-ID", id);
    }
    response
}

async fn scrape(Extract(state): Extract<State>, method: Method) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return method_not_allowed();
    }
    if let Some(member) = state.member() {
        member.refresh_metrics();
    }
    metrics::PROMHTTP_METRIC_HANDLER_REQUESTS_TOTAL
        .with_label_values(&["200"])
        .inc();
    let mut response = Response::new(Body::from(metrics::render()));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(metrics::CONTENT_TYPE),
    );
    response
}

/// A few variables of the process, under the names Go programs publish.
async fn debug_vars(Extract(state): Extract<State>, method: Method) -> Response {
    if method != Method::GET {
        return method_not_allowed();
    }
    let status = state.member().map(Member::status).unwrap_or_default();
    let body = serde_json::json!({
        "cmdline": std::env::args_os()
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect::<Vec<_>>(),
        "file_descriptor_limit": metrics::OS_FD_LIMIT.get(),
        "raft.status": {
            "id": format!("{:x}", status.member_id),
            "term": status.term,
            "lead": format!("{:x}", status.leader),
            "commit": status.committed_index,
            "applied": status.applied_index,
        },
    });
    json(StatusCode::OK, body.to_string())
}

/// The JSON gateway is not built yet. The body has the three keys by which
/// clients of any release find an error (http.md 5.4).
async fn gateway() -> Response {
    let text = "the JSON gateway comes in a later release of stele; use gRPC on this port";
    let body = serde_json::json!({ "error": text, "code": 12, "message": text });
    json(StatusCode::NOT_IMPLEMENTED, body.to_string())
}

/// The gateway is a tree of paths, which Go's router redirects to.
async fn gateway_root(method: Method, uri: Uri) -> Response {
    paths::redirection(&method, "/v3/", uri.query())
}

async fn not_found() -> Response {
    error(StatusCode::NOT_FOUND, "404 page not found")
}

fn method_not_allowed() -> Response {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static("GET"));
    response
}

/// A plain-text error: the text and a newline.
fn error(status: StatusCode, text: &str) -> Response {
    let mut response = plain(status, format!("{text}\n"));
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    response
}

fn plain(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, TEXT_PLAIN);
    response
}

fn json(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

#[cfg(test)]
mod tests;
