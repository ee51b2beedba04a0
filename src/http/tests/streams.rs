//! HTTP/2 as unusual clients speak it: small frames in bursts, long headers,
//! authorities that are none, small answers beside large ones.

use axum::extract::Request;
use axum::routing::get;

use super::super::frames::{DATA, END_STREAM, frame};
use super::raw::{self, Answer, Client};
use super::*;

/// Connection settings do not matter to most tests here.
const WINDOW_BYTES: u32 = 1 << 24;

const LARGE_BYTES: usize = 4 << 20;

/// Answers by path, on a port of the kernel's choice until the end of the test.
fn serve() -> std::net::SocketAddr {
    let listener = Listener::bind(
        &"http://127.0.0.1:0".parse().unwrap(),
        &SocketOptions::default(),
    );
    let listener = listener.unwrap();
    let address = listener.local_addr().unwrap();
    // Waits before it reads, so that everything sent until then has to lie somewhere.
    let count = |request: Request| async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let body = request.into_body().collect().await.unwrap().to_bytes();
        format!("{} bytes", body.len())
    };
    let header_bytes = |request: Request| async move {
        let values = request.headers().values();
        format!("{} bytes", values.map(HeaderValue::len).sum::<usize>())
    };
    let router = Router::new()
        .route("/count", any(count))
        .route("/headers", get(header_bytes))
        .route("/large", get(|| async { vec![b'x'; LARGE_BYTES] }))
        .route("/", get(|| async { "served" }));
    tokio::spawn(listener::serve(
        vec![listener],
        Services::One(router),
        None,
        connection_settings(),
        CancellationToken::new(),
    ));
    address
}

fn body(text: &str) -> Answer {
    Answer::Body(text.to_owned())
}

/// Keep-alives of 8,000 leases, or watches by the thousand, come in one burst.
#[tokio::test]
async fn a_burst_of_small_frames_is_read() {
    let mut client = Client::connect(serve(), WINDOW_BYTES).await;
    // The server's windows count once its settings are acknowledged.
    assert_eq!(client.get(1, "/", "a").await, body("served"));
    let mut fields = raw::get("/count", "a");
    fields[0].1 = "POST";
    let mut burst = raw::headers(3, &raw::fields(&fields), 0);
    for _ in 0..50_000 {
        burst.extend(frame(DATA, 0, 3, &[7; 16]));
    }
    burst.extend(frame(DATA, END_STREAM, 3, &[]));
    client.send(&burst).await;
    assert_eq!(client.answer(3).await, body("800000 bytes"));
}

#[tokio::test]
async fn requests_of_any_authority_are_served() {
    let address = serve();
    for authority in [
        "127.0.0.1:2379",
        "#initially=[127.0.0.1:2379]",
        "#initially=[http://127.0.0.1:2379]",
        "127.0.0.1:1,127.0.0.1:2",
        "%2Frun%2Fetcd.sock",
        "/run/etcd.sock",
        "svc%2Fkv",
        "unix:/run/etcd.sock",
        "::1",
        "http://h:1",
        "x y",
        "",
    ] {
        let mut client = Client::connect(address, WINDOW_BYTES).await;
        for stream in [1, 3, 5] {
            let answer = client.get(stream, "/", authority).await;
            assert_eq!(answer, body("served"), "{authority:?}, stream {stream}");
        }
    }
}

#[tokio::test]
async fn long_headers_are_read_up_to_a_limit() {
    let address = serve();
    for len in [20_000, 100_000, 300_000, 1_000_000] {
        for authority in ["127.0.0.1:2379", "#initially=[127.0.0.1:2379]"] {
            let mut client = Client::connect(address, WINDOW_BYTES).await;
            let value = "v".repeat(len);
            let mut fields = raw::get("/headers", authority);
            fields.push(("name", &value));
            let block = raw::fields(&fields);
            client.send(&raw::headers(1, &block, END_STREAM)).await;
            assert_eq!(client.answer(1).await, body(&format!("{len} bytes")));
        }
    }
    // What is too much ends this call, and no other.
    let mut client = Client::connect(address, WINDOW_BYTES).await;
    let value = "v".repeat(1_100_000);
    let mut fields = raw::get("/headers", "a");
    fields.push(("name", &value));
    let block = raw::fields(&fields);
    client.send(&raw::headers(1, &block, END_STREAM)).await;
    assert_ne!(client.answer(1).await, body("1100000 bytes"));
    assert_eq!(client.get(3, "/", "a").await, body("served"));
}

#[tokio::test]
async fn many_header_lines_are_read() {
    let stream = TcpStream::connect(serve()).await.unwrap();
    let lines: String = (0..1000).map(|n| format!("x-{n}: y\r\n")).collect();
    let answer = http1(stream, "/", &lines).await.unwrap();
    assert!(answer.ends_with("served"), "{answer}");
}

/// The client lets little through at a time, so that what goes first is the
/// server's choice.
#[tokio::test]
async fn a_small_answer_does_not_wait_for_large_ones() {
    const LARGE_STREAMS: [u32; 4] = [1, 3, 5, 7];
    const SMALL_STREAM: u32 = 9;
    /// What flow control lets through at first (RFC 9113, section 6.9.2).
    const FIRST_BYTES: usize = 65_535;
    let mut client = Client::connect(serve(), WINDOW_BYTES).await;
    for stream in LARGE_STREAMS {
        let block = raw::fields(&raw::get("/large", "a"));
        client.send(&raw::headers(stream, &block, END_STREAM)).await;
    }
    let mut read = 0;
    while read < FIRST_BYTES {
        let (head, payload) = client.frame().await;
        if head.kind == DATA {
            read += payload.len();
        }
    }
    let block = raw::fields(&raw::get("/", "a"));
    client
        .send(&raw::headers(SMALL_STREAM, &block, END_STREAM))
        .await;
    let mut before = 0;
    loop {
        client.open_window(16 << 10).await;
        let (head, payload) = client.frame().await;
        if head.kind == DATA && head.stream == SMALL_STREAM {
            break;
        }
        before += payload.len();
    }
    assert!(before < LARGE_BYTES / 2, "{before} bytes went before");
}
