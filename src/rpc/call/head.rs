//! The head of a call, and what is refused for it alone.
//!
//! Go's library looks at the head before it knows which service is meant, and
//! its refusals have an HTTP status besides the one of gRPC: proxies and people
//! with curl see those. Which fault is named when there are several is copied
//! too (grpc-go's `http2_server.go`).

use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use tonic::Status;
use tonic::body::Body;

use super::metadata::{self, Metadata};
use super::wording::quoted;
use crate::rpc::status;

const GRPC: &[u8] = b"application/grpc";

/// A refusal before the call begins. It is in no metric, as at etcd.
#[derive(Debug)]
pub(super) struct Refusal {
    code: StatusCode,
    status: Status,
}

impl Refusal {
    fn new(code: StatusCode, status: Status) -> Refusal {
        Refusal { code, status }
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let mut response = self.status.into_http();
        *response.status_mut() = self.code;
        response
    }
}

/// The head of a call that may begin.
#[derive(Debug)]
pub(super) struct Head<'h> {
    pub(super) metadata: Metadata<'h>,
    /// What the answer's content type is, if it is not the usual one.
    pub(super) answer_type: Option<HeaderValue>,
}

/// Reads the head. A refusal comes with the content type that it is to have.
pub(super) fn read(head: &Parts) -> Result<Head<'_>, (Refusal, Option<HeaderValue>)> {
    let mut metadata = metadata::read(&head.headers);
    let content_type = metadata
        .content_type
        .map_or(&b""[..], HeaderValue::as_bytes);
    let subtype = subtype(content_type);
    let answer_type = subtype.and_then(answer_type);
    let fault = metadata.fault.take();
    match examine(head, metadata.hosts, content_type, subtype, fault) {
        Some(refusal) => Err((refusal, answer_type)),
        None if metadata
            .timeout
            .is_some_and(|timeout| timeout.as_micros() == 0) =>
        {
            // It is over before anything could be done.
            let status = status::DEADLINE_EXCEEDED.into();
            Err((Refusal::new(StatusCode::OK, status), answer_type))
        }
        None => Ok(Head {
            metadata,
            answer_type,
        }),
    }
}

fn examine(
    head: &Parts,
    hosts: usize,
    content_type: &[u8],
    subtype: Option<&[u8]>,
    fault: Option<String>,
) -> Option<Refusal> {
    if hosts > 1 {
        let authorities = usize::from(head.uri.authority().is_some());
        let text = format!(
            "num values of :authority: {authorities}, num values of host: {hosts}, both must only \
             have 1 value as per HTTP/2 spec"
        );
        return Some(Refusal::new(
            StatusCode::BAD_REQUEST,
            Status::internal(text),
        ));
    }
    if subtype.is_none() {
        let text = format!("invalid gRPC request content-type {}", quoted(content_type));
        let status = Status::invalid_argument(text);
        return Some(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, status));
    }
    if let Some(text) = fault {
        return Some(Refusal::new(
            StatusCode::BAD_REQUEST,
            Status::internal(text),
        ));
    }
    if head.method != Method::POST {
        let text = format!(
            "Received a HEADERS frame with :method {} which should be POST",
            quoted(head.method.as_str().as_bytes())
        );
        let status = Status::internal(text);
        return Some(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, status));
    }
    None
}

/// The codec after `application/grpc`, empty where none is named; `None` for
/// what is not gRPC.
fn subtype(content_type: &[u8]) -> Option<&[u8]> {
    let rest = content_type.strip_prefix(GRPC)?;
    match rest {
        [] => Some(rest),
        [b'+' | b';', subtype @ ..] => Some(subtype),
        _ => None,
    }
}

/// The answer names the codec that the request named, whichever: there is one.
fn answer_type(subtype: &[u8]) -> Option<HeaderValue> {
    if subtype.is_empty() {
        return None;
    }
    // A part of a valid value is one.
    HeaderValue::from_bytes(&[GRPC, b"+", subtype].concat()).ok()
}

/// Gives an answer the content type that it is to have.
pub(super) fn set_type<B>(response: &mut Response<B>, answer_type: Option<HeaderValue>) {
    if let Some(answer_type) = answer_type {
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, answer_type);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    /// HTTP status, gRPC code, text and content type of a refusal.
    fn refusal(method: &str, headers: &[(&str, &str)]) -> Option<(u16, i32, String, String)> {
        let mut request = Request::builder().method(method).uri("http://a/b.C/D");
        for (name, value) in headers {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            request = request.header(*name, value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        let (refusal, answer_type) = read(&head).err()?;
        let mut response = refusal.into_response();
        set_type(&mut response, answer_type);
        let status = Status::from_header_map(response.headers()).unwrap();
        let content_type = response.headers()[header::CONTENT_TYPE].to_str().unwrap();
        Some((
            response.status().as_u16(),
            status.code() as i32,
            status.message().to_owned(),
            content_type.to_owned(),
        ))
    }

    fn of(http: u16, code: i32, text: &str) -> Option<(u16, i32, String, String)> {
        Some((http, code, text.to_owned(), "application/grpc".to_owned()))
    }

    const PLAIN: (&str, &str) = ("content-type", "application/grpc");

    /// As recorded from etcd 3.7.3.
    #[test]
    fn what_is_no_grpc_is_an_unsupported_media_type() {
        let refused = |content_type: &str| {
            let text = format!("invalid gRPC request content-type \"{content_type}\"");
            assert_eq!(
                refusal("POST", &[("content-type", content_type)]),
                of(415, 3, &text)
            );
        };
        refused("");
        refused("application/json");
        refused("application/grpcx");
        refused("application/grpc-web");
        refused("Application/GRPC");
        let none = of(415, 3, "invalid gRPC request content-type \"\"");
        assert_eq!(refusal("GET", &[]), none);
        for good in ["", "+proto", "+", ";charset=utf-8"] {
            let content_type = format!("application/grpc{good}");
            assert_eq!(refusal("POST", &[("content-type", &content_type)]), None);
        }
    }

    #[test]
    fn only_post_is_a_call() {
        for method in ["GET", "OPTIONS", "HEAD", "post"] {
            let text =
                format!("Received a HEADERS frame with :method \"{method}\" which should be POST");
            assert_eq!(refusal(method, &[PLAIN]), of(405, 13, &text));
        }
    }

    #[test]
    fn the_first_fault_that_go_would_find_is_named() {
        let timeout = ("grpc-timeout", "5s");
        let text = "malformed grpc-timeout: transport: timeout unit is not recognized: \"5s\"";
        assert_eq!(refusal("GET", &[PLAIN, timeout]), of(400, 13, text));
        let proto = ("content-type", "application/grpc+proto");
        let refused = refusal("POST", &[proto, timeout]).unwrap();
        assert_eq!((refused.0, refused.3.as_str()), (400, proto.1));
        let other = ("content-type", "x");
        let text = "invalid gRPC request content-type \"x\"";
        assert_eq!(refusal("POST", &[other, timeout]), of(415, 3, text));
        let text = "num values of :authority: 1, num values of host: 2, both must only have 1 \
                    value as per HTTP/2 spec";
        let hosts = [("host", "a"), ("host", "b"), other];
        assert_eq!(refusal("POST", &hosts), of(400, 13, text));
    }

    #[test]
    fn no_time_is_too_little() {
        for timeout in ["0S", "0n", "1n"] {
            let timeout = ("grpc-timeout", timeout);
            let refused = refusal("POST", &[PLAIN, timeout]);
            assert_eq!(refused, of(200, 4, "context deadline exceeded"));
        }
        assert_eq!(refusal("POST", &[PLAIN, ("grpc-timeout", "1u")]), None);
    }
}
