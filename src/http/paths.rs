//! Paths as Go's `ServeMux` takes them, which routes at etcd: one that is not
//! written in the simplest way is redirected to that (probes with a doubled
//! slash follow it), and letters may be escaped.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use tower::ServiceExt as _;

/// The same routes for paths however written.
pub(super) fn tolerant(router: Router) -> Router {
    let unescaped = tower::service_fn(move |mut request: Request| {
        let router = router.clone();
        async move {
            if let Some(uri) = unescape(request.uri()) {
                *request.uri_mut() = uri;
            }
            router.oneshot(request).await
        }
    });
    Router::new()
        .fallback_service(unescaped)
        .layer(middleware::from_fn(redirect))
}

async fn redirect(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let clean = clean(path);
    if clean == path || request.method() == Method::CONNECT {
        return next.run(request).await;
    }
    redirection(request.method(), &clean, request.uri().query())
}

/// The answer that sends to another path of this server.
pub(super) fn redirection(method: &Method, path: &str, query: Option<&str>) -> Response {
    let mut location = escape(path);
    if let Some(query) = query {
        location.push('?');
        location.push_str(query);
    }
    // Escaped, and a query that was valid.
    let Ok(value) = HeaderValue::try_from(&location) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    response.headers_mut().insert(header::LOCATION, value);
    if matches!(*method, Method::GET | Method::HEAD) {
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, html);
    }
    if method == Method::GET {
        let link = html_escape(&location);
        let text = format!("<a href=\"{link}\">Temporary Redirect</a>.\n\n");
        *response.body_mut() = Body::from(text);
    }
    response
}

/// The path without empty segments, `.` and `..`. A slash at the end stays.
fn clean(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    let mut clean = format!("/{}", segments.join("/"));
    if path.ends_with('/') && clean != "/" {
        clean.push('/');
    }
    clean
}

/// What a path may not hold as it is, a percent sign included: a path that was
/// escaped is escaped again, as in Go.
fn escape(path: &str) -> String {
    let mut escaped = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte) {
            escaped.push(byte.into());
        } else {
            escaped += &format!("%{byte:02X}");
        }
    }
    escaped
}

fn html_escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&#34;")
        .replace('\'', "&#39;")
}

/// The URI with what needs no escape unescaped; `None` if nothing is to do.
/// An escaped slash separates no segments and stays.
fn unescape(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    let mut rest = path.split('%');
    let mut plain = rest.next()?.to_owned();
    for part in rest {
        let code = part.get(..2)?;
        let byte = u8::from_str_radix(code, 16).ok()?;
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            plain.push(byte.into());
        } else {
            plain.push('%');
            plain.push_str(code);
        }
        plain.push_str(&part[2..]);
    }
    if plain == path {
        return None;
    }
    if let Some(query) = uri.query() {
        plain.push('?');
        plain.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(plain).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned() {
        for (path, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("/health", "/health"),
            ("/health/", "/health/"),
            ("//health", "/health"),
            ("/./health", "/health"),
            ("/a/../health", "/health"),
            ("/../health", "/health"),
            ("/health/..", "/"),
            ("/livez/.", "/livez"),
            ("/livez//x", "/livez/x"),
            ("/a/./b/../c/", "/a/c/"),
            ("/a//", "/a/"),
        ] {
            assert_eq!(clean(path), expected, "{path}");
        }
    }

    #[test]
    fn only_needless_escapes_are_taken_away() {
        let of = |uri: &'static str| unescape(&Uri::from_static(uri)).map(|uri| uri.to_string());
        assert_eq!(of("/%68ealth?a=%68").as_deref(), Some("/health?a=%68"));
        for uri in ["/health", "/%2Fhealth", "/a%zz", "/a%2", "/a?%68"] {
            assert_eq!(of(uri), None, "{uri}");
        }
    }
}
