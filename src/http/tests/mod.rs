//! The paths, byte for byte, and the port that serves them.

mod raw;
mod streams;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::Request;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::listener::{Listener, Services, SocketOptions};
use super::*;

/// A member that answers what it is told to.
#[derive(Default)]
struct Fake {
    status: Mutex<Status>,
    alarms: Mutex<Vec<Alarm>>,
    local_error: Mutex<Option<String>>,
    linearizable_error: Mutex<Option<String>>,
    is_refreshed: AtomicBool,
    cluster: Mutex<Cluster>,
}

impl Fake {
    fn healthy() -> Arc<Fake> {
        let fake = Fake::default();
        *fake.status.lock() = Status {
            member_id: 1,
            leader: 1,
            term: 2,
            ..Status::default()
        };
        Arc::new(fake)
    }
}

impl Member for Fake {
    fn status(&self) -> Status {
        *self.status.lock()
    }

    fn alarms(&self) -> Vec<Alarm> {
        self.alarms.lock().clone()
    }

    fn read_local(&self) -> Result<(), String> {
        self.local_error.lock().clone().map_or(Ok(()), Err)
    }

    fn read_linearizable(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { self.linearizable_error.lock().clone().map_or(Ok(()), Err) })
    }

    fn cluster(&self) -> Cluster {
        self.cluster.lock().clone()
    }

    fn refresh_metrics(&self) {
        self.is_refreshed.store(true, Ordering::Relaxed);
    }
}

fn state(fake: &Arc<Fake>) -> State {
    let state = State::new(Versions {
        server: "3.7.3".into(),
        cluster: "3.7.0".into(),
        storage: "3.7.0".into(),
    });
    state.serve(Arc::clone(fake) as Arc<dyn Member>);
    state
}

fn paths(fake: &Arc<Fake>) -> Router {
    router(state(fake), Arc::default(), true)
}

/// Status and body of the answer to `method` on `path`.
async fn ask(router: &Router, method: &str, path: &str) -> (u16, String) {
    let (status, _, body) = ask_whole(router, method, path, &[]).await;
    (status, body)
}

async fn get(router: &Router, path: &str) -> (u16, String) {
    ask(router, "GET", path).await
}

async fn ask_whole(
    router: &Router,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, http::HeaderMap, String) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (
        parts.status.as_u16(),
        parts.headers,
        String::from_utf8(body.to_vec()).unwrap(),
    )
}

fn owned(status: u16, body: &str) -> (u16, String) {
    (status, body.to_owned())
}

/// As recorded from etcd 3.7.
#[tokio::test]
async fn the_peer_port_shows_members_and_versions_and_no_more() {
    let fake = Fake::healthy();
    *fake.cluster.lock() = Cluster {
        id: 0x5c5d_d39c_8569_06c6,
        members: vec![
            ClusterMember {
                id: 14_483_362_809_049_966_137,
                peer_urls: vec!["http://127.0.0.1:31980".to_owned()],
                name: "n1".to_owned(),
                client_urls: vec!["http://127.0.0.1:31979".to_owned()],
                is_learner: false,
            },
            ClusterMember {
                id: 2,
                peer_urls: vec!["http://b:1".to_owned()],
                is_learner: true,
                ..ClusterMember::default()
            },
        ],
    };
    let router = peer_router(state(&fake));
    let (status, headers, body) = ask_whole(&router, "GET", "/members", &[]).await;
    let expected = concat!(
        r#"[{"id":14483362809049966137,"peerURLs":["http://127.0.0.1:31980"],"name":"n1","#,
        r#""clientURLs":["http://127.0.0.1:31979"]},"#,
        r#"{"id":2,"peerURLs":["http://b:1"],"isLearner":true}]"#,
        "\n"
    );
    assert_eq!((status, body.as_str()), (200, expected));
    assert_eq!(headers["x-etcd-cluster-id"], "5c5dd39c856906c6");
    let version = r#"{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
    assert_eq!(get(&router, "/version").await, owned(200, version));
    assert_eq!(get(&router, "/health").await.0, 404);
}

#[tokio::test]
async fn health_is_json_of_strings() {
    let fake = Fake::healthy();
    let router = paths(&fake);
    let healthy = owned(200, r#"{"health":"true","reason":""}"#);
    let unhealthy = |reason: &str| {
        owned(
            503,
            &format!("{{\"health\":\"false\",\"reason\":\"{reason}\"}}\n"),
        )
    };
    assert_eq!(get(&router, "/health").await, healthy);
    assert_eq!(get(&router, "/health?serializable=false").await, healthy);

    fake.status.lock().leader = 0;
    assert_eq!(get(&router, "/health").await, unhealthy("RAFT NO LEADER"));
    assert_eq!(get(&router, "/health?serializable=true").await, healthy);
    fake.status.lock().leader = 1;

    *fake.linearizable_error.lock() = Some("etcdserver: request timed out".into());
    let reason = "RANGE ERROR:etcdserver: request timed out";
    assert_eq!(get(&router, "/health").await, unhealthy(reason));

    *fake.alarms.lock() = vec![Alarm::NoSpace];
    assert_eq!(get(&router, "/health").await, unhealthy("ALARM NOSPACE"));
    assert_eq!(
        get(&router, "/health?exclude=CORRUPT").await,
        unhealthy("ALARM NOSPACE")
    );
    assert_eq!(
        get(&router, "/health?exclude=NOSPACE&serializable=true").await,
        healthy
    );
    *fake.alarms.lock() = vec![Alarm::Unknown];
    assert_eq!(
        get(&router, "/health?exclude=UNKNOWN").await,
        unhealthy("ALARM UNKNOWN")
    );
}

#[tokio::test]
async fn only_get_is_answered() {
    let router = paths(&Fake::healthy());
    for path in ["/health", "/livez", "/readyz/non_learner", "/version"] {
        let (status, headers, body) = ask_whole(&router, "POST", path, &[]).await;
        assert_eq!(
            (status, body.as_str()),
            (405, "Method Not Allowed\n"),
            "{path}"
        );
        assert_eq!(headers["allow"], "GET");
    }
}

#[tokio::test]
async fn checks_are_listed_on_request_and_on_failure() {
    let fake = Fake::healthy();
    let router = paths(&fake);
    assert_eq!(get(&router, "/livez").await, owned(200, "ok\n"));
    assert_eq!(
        get(&router, "/livez?verbose").await,
        owned(200, "[+]serializable_read ok\nok\n")
    );
    assert_eq!(
        get(&router, "/readyz/linearizable_read").await,
        owned(200, "ok\n")
    );
    assert_eq!(
        get(&router, "/livez/linearizable_read").await,
        owned(404, "404 page not found\n")
    );

    *fake.alarms.lock() = vec![Alarm::NoSpace];
    assert_eq!(
        get(&router, "/readyz").await,
        owned(200, "ok\n"),
        "only CORRUPT matters"
    );
    *fake.alarms.lock() = vec![Alarm::Corrupt];
    fake.status.lock().is_learner = true;
    let failed = "[-]data_corruption failed: alarm activated: CORRUPT\n\
                  [+]serializable_read ok\n\
                  [+]linearizable_read ok\n\
                  [-]non_learner failed: not supported for learner\n\n";
    assert_eq!(get(&router, "/readyz").await, owned(503, failed));
    let excluded = "/readyz?exclude=data_corruption&exclude=non_learner&exclude=fancy";
    assert_eq!(get(&router, excluded).await, owned(200, "ok\n"));
    let one = "[-]non_learner failed: not supported for learner\n\n";
    let path = "/readyz/non_learner?exclude=non_learner";
    assert_eq!(get(&router, path).await, owned(503, one));
    assert_eq!(
        get(&router, "/livez?exclude=serializable_read").await,
        owned(200, "ok\n")
    );
}

#[tokio::test]
async fn a_member_that_starts_is_not_healthy() {
    let versions = Versions {
        server: "".into(),
        cluster: "".into(),
        storage: "".into(),
    };
    let router = metrics_router(State::new(versions));
    assert_eq!(get(&router, "/health").await.0, 503);
    let livez = "[-]serializable_read failed: the member is starting\n\n";
    assert_eq!(get(&router, "/livez").await, owned(503, livez));
    assert_eq!(get(&router, "/readyz").await.0, 503);
    assert_eq!(get(&router, "/metrics").await.0, 200);
    assert_eq!(
        get(&router, "/version").await.0,
        404,
        "not on a metrics listener"
    );
}

#[tokio::test]
async fn the_other_paths() {
    let fake = Fake::healthy();
    let router = paths(&fake);
    let version = r#"{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
    assert_eq!(get(&router, "/version").await, owned(200, version));
    assert_eq!(
        get(&router, "/nowhere").await,
        owned(404, "404 page not found\n")
    );
    let (status, headers, body) = ask_whole(&router, "GET", "/metrics", &[]).await;
    assert_eq!(status, 200);
    assert_eq!(
        headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert!(body.contains("\netcd_server_has_leader "));
    assert!(fake.is_refreshed.load(Ordering::Relaxed));
    let (_, vars) = get(&router, "/debug/vars").await;
    let vars: serde_json::Value = serde_json::from_str(&vars).unwrap();
    assert_eq!(vars["raft.status"]["term"], 2);
    let (status, body) = ask(&router, "POST", "/v3/kv/range").await;
    assert_eq!(status, 501);
    assert!(body.contains(r#""code":12"#), "{body}");
}

#[tokio::test]
async fn origins_and_hosts_are_checked() {
    let fake = Fake::healthy();
    let access = Access {
        origins: vec!["https://a.example".into()],
        hosts: vec!["good.example".into(), "::1".into()],
    };
    let router = router(state(&fake), Arc::new(access), false);
    let good = ("host", "good.example:2379");
    for (host, status) in [
        ("good.example", 200),
        ("[::1]:1", 200),
        ("evil.example", 421),
    ] {
        let answer = ask_whole(&router, "GET", "/version", &[("host", host)]).await;
        assert_eq!(answer.0, status, "{host}");
    }
    let allowed = [good, ("origin", "https://a.example")];
    let (_, headers, _) = ask_whole(&router, "GET", "/version", &allowed).await;
    assert_eq!(headers["access-control-allow-origin"], "https://a.example");
    let other = [good, ("origin", "https://b.example")];
    let (_, headers, _) = ask_whole(&router, "GET", "/version", &other).await;
    assert!(!headers.contains_key("access-control-allow-origin"));
    let (status, _, body) = ask_whole(&router, "OPTIONS", "/anything", &[good]).await;
    assert_eq!((status, body.as_str()), (200, ""));

    let open = paths(&fake);
    let (_, headers, _) = ask_whole(&open, "GET", "/nowhere", &[]).await;
    assert_eq!(headers["access-control-allow-origin"], "*");
    assert_eq!(
        headers["access-control-allow-methods"],
        "POST, GET, OPTIONS, PUT, DELETE"
    );
    assert_eq!(
        headers["access-control-allow-headers"],
        "accept, content-type, authorization"
    );
}

pub(super) fn connection_settings() -> listener::Settings {
    listener::Settings {
        max_concurrent_streams: u32::MAX,
        ping_interval: None,
        ping_timeout: Duration::from_secs(20),
        min_ping_interval: Duration::from_secs(5),
    }
}

fn services() -> Services<Router> {
    let slow = || async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        "done"
    };
    let http = router(state(&Fake::healthy()), Arc::new(access()), true);
    let http = http.route("/slow", any(slow));
    let grpc = Router::new().fallback(|| async { "grpc" });
    Services::Both {
        grpc,
        http,
        access: Arc::new(access()),
    }
}

fn access() -> Access {
    Access {
        origins: vec!["https://a.example".into()],
        hosts: vec!["a".into()],
    }
}

/// Sends a request in HTTP/1 and returns the whole answer.
pub(super) async fn http1<S>(mut stream: S, path: &str, headers: &str) -> std::io::Result<String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Sends a request for `/version` in HTTP/2 without TLS. Returns the head and
/// the body of the answer.
async fn http2(
    stream: TcpStream,
    method: &str,
    headers: &[(&str, &str)],
) -> (http::response::Parts, String) {
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let handshake = hyper::client::conn::http2::handshake(executor, io);
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri("http://a/version");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head, String::from_utf8(body.to_vec()).unwrap())
}

/// As recorded from etcd 3.7.3.
#[tokio::test]
async fn paths_that_are_not_simple_are_redirected() {
    let fake = Fake::healthy();
    let router = paths(&fake);
    for (path, location) in [
        ("//health", "/health"),
        ("/./health", "/health"),
        ("/a/../health", "/health"),
        ("/../health", "/health"),
        ("/livez/.", "/livez"),
        ("/livez//serializable_read", "/livez/serializable_read"),
        ("//health?exclude=NOSPACE", "/health?exclude=NOSPACE"),
        ("//nope", "/nope"),
        ("//", "/"),
        ("/a/./b/../c/", "/a/c/"),
        ("//a%2Fb", "/a%252Fb"),
        ("//'q", "/%27q"),
        ("/v3", "/v3/"),
        ("/v3/kv//range", "/v3/kv/range"),
    ] {
        let (status, headers, body) = ask_whole(&router, "GET", path, &[]).await;
        assert_eq!(status, 307, "{path}");
        assert_eq!(headers["location"], location);
        assert_eq!(headers["content-type"], "text/html; charset=utf-8");
        let link = format!("<a href=\"{location}\">Temporary Redirect</a>.\n\n");
        assert_eq!(body, link);
        assert_eq!(headers["access-control-allow-origin"], "*");
        let (status, headers, body) = ask_whole(&router, "POST", path, &[]).await;
        assert_eq!((status, body.as_str()), (307, ""));
        assert_eq!(headers["location"], location);
        assert!(!headers.contains_key("content-type"));
        assert_eq!(ask(&router, "OPTIONS", path).await, owned(200, ""));
    }
    let (_, _, body) = ask_whole(&router, "GET", "//a?b='", &[]).await;
    assert_eq!(body, "<a href=\"/a?b=&#39;\">Temporary Redirect</a>.\n\n");
    assert_eq!(get(&router, "/%68ealth").await.0, 200);
    assert_eq!(get(&router, "/livez/%73erializable_read").await.0, 200);
    for nowhere in [
        "/health/",
        "/%2Fhealth",
        "/livez/",
        "/livez/x/y",
        "/metrics/",
    ] {
        let missing = owned(404, "404 page not found\n");
        assert_eq!(get(&router, nowhere).await, missing, "{nowhere}");
    }
    assert_eq!(get(&metrics_router(state(&fake)), "//health").await.0, 307);
    assert_eq!(get(&peer_router(state(&fake)), "//members").await.0, 307);
}

/// Calls of pages pass what plain HTTP passes; on a port of calls alone too.
#[tokio::test]
async fn calls_of_pages_are_checked() {
    let Services::Both { grpc, access, .. } = services() else {
        unreachable!("both are served");
    };
    for services in [services(), Services::Grpc { grpc, access }] {
        let url = "http://127.0.0.1:0".parse().unwrap();
        let listener = Listener::bind(&url, &SocketOptions::default()).unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(listener::serve(
            vec![listener],
            services,
            None,
            connection_settings(),
            shutdown.clone(),
        ));
        let ask = async |method: &str, host: &str, headers: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let head = format!(
                "{method} /etcdserverpb.KV/Range HTTP/1.1\r\nhost: {host}\r\nconnection: \
                 close\r\ncontent-length: 0\r\n{headers}\r\n"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let web = "content-type: application/grpc-web+proto\r\n";
        let stranger = ask("POST", "evil.example", web).await;
        assert!(stranger.starts_with("HTTP/1.1 421 "), "{stranger}");

        let from_a = format!("{web}origin: https://a.example\r\n");
        let answer = ask("POST", "a", &from_a).await;
        assert!(answer.ends_with("grpc"), "{answer}");
        for line in [
            "access-control-allow-origin: https://a.example\r\n",
            "access-control-expose-headers: grpc-status, grpc-message, grpc-status-details-bin\r\n",
        ] {
            assert!(answer.contains(line), "{answer}");
        }
        let from_b = format!("{web}origin: https://b.example\r\n");
        let answer = ask("POST", "a:2379", &from_b).await;
        assert!(answer.ends_with("grpc"), "{answer}");
        assert!(!answer.contains("access-control"), "{answer}");

        let question = "origin: https://a.example\r\naccess-control-request-method: POST\r\n\
                        access-control-request-headers: content-type,x-grpc-web\r\n";
        let answer = ask("OPTIONS", "a", question).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let allowed = "access-control-allow-headers: accept, content-type, authorization, \
                       x-grpc-web, x-user-agent, grpc-timeout, token, hasleader, \
                       client-api-version\r\n";
        assert!(answer.contains(allowed), "{answer}");
        let stranger = ask("OPTIONS", "evil.example", question).await;
        assert!(stranger.starts_with("HTTP/1.1 421 "), "{stranger}");

        // A proxy speaks HTTP/2 with us.
        let connect = TcpStream::connect(address).await.unwrap();
        let web = [
            ("content-type", "application/grpc-web-text"),
            ("origin", "https://a.example"),
        ];
        let (head, body) = http2(connect, "POST", &web).await;
        assert_eq!(body, "grpc");
        assert_eq!(head.headers["access-control-allow-origin"], web[1].1);
        let connect = TcpStream::connect(address).await.unwrap();
        let question = [
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "X-Grpc-Web"),
        ];
        let (head, body) = http2(connect, "OPTIONS", &question).await;
        assert_eq!((head.status.as_u16(), body.as_str()), (200, ""));
        shutdown.cancel();
        serving.await.unwrap();
    }
}

#[tokio::test]
async fn one_port_serves_both_sides_and_drains() {
    let url = "http://127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(&url, &SocketOptions::default()).unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(listener::serve(
        vec![listener],
        services(),
        None,
        connection_settings(),
        shutdown.clone(),
    ));

    let connect = || async move { TcpStream::connect(address).await.unwrap() };
    let answer = http1(connect().await, "/version", "").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    // A call is one in HTTP/2 only, and there everything is one.
    let grpc = "content-type: application/grpc+proto\r\n";
    let answer = http1(connect().await, "/etcdserverpb.KV/Range", grpc)
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    for (method, content_type) in [("POST", "application/grpc+proto"), ("GET", "text/plain")] {
        let answer = http2(connect().await, method, &[("content-type", content_type)]).await;
        assert_eq!(answer.1, "grpc");
    }

    let slow = tokio::spawn(http1(connect().await, "/slow", ""));
    tokio::time::sleep(Duration::from_millis(50)).await;
    shutdown.cancel();
    let answer = slow.await.unwrap().unwrap();
    assert!(answer.ends_with("done"), "a running call ends: {answer}");
    serving.await.unwrap();
    assert!(
        TcpStream::connect(address).await.is_err(),
        "nobody listens any more"
    );
}

#[tokio::test]
async fn a_port_in_use_and_a_stale_socket_file() {
    let taken = Listener::bind(
        &"http://127.0.0.1:0".parse().unwrap(),
        &SocketOptions::default(),
    );
    let address = taken.as_ref().unwrap().local_addr().unwrap();
    let url = format!("http://{address}").parse().unwrap();
    let error = Listener::bind(&url, &SocketOptions::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("cannot listen on http://{address}: "))
    );

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    std::fs::write(&path, "left behind").unwrap();
    let url = format!("unix://{}", path.display()).parse().unwrap();
    let listener = Listener::bind(&url, &SocketOptions::default()).unwrap();
    assert!(tokio::net::UnixStream::connect(&path).await.is_ok());
    drop(listener);
    assert!(!path.exists());
}
