//! Connections to the ports of other members, from the dialing side.
//!
//! One [`Dialer::dial`] makes one HTTP/2 connection, over TCP or a socket file,
//! with or without TLS as the URL says. The connection is driven by a future
//! that ends when it breaks, so that whoever dialed knows at once and decides
//! when to dial again. Pings find a silent partition while a call is open.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, Scheme as UriScheme};
use http::{HeaderMap, Request, Response, Uri};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UnixStream, lookup_host};
use tower::Service;

use super::Url;
use super::listener::tune;
use super::tls::{ClientTls, TlsError};

/// What a stream and a connection may bring before it is read. Answers are
/// small; snapshots and appends go the other way.
const WINDOW_BYTES: u32 = 1 << 20;

#[derive(Debug, Clone)]
pub struct Settings {
    /// For `https` and `unixs`.
    pub tls: Option<ClientTls>,
    /// Where connections come from; none: the system chooses.
    pub local_address: Option<IpAddr>,
    /// How long connecting may take, handshakes included.
    pub connect_limit: Duration,
    /// After how long without traffic the other side is pinged.
    pub ping_interval: Duration,
    /// How long it may take to answer.
    pub ping_timeout: Duration,
}

#[derive(Debug, Error)]
pub enum DialError {
    #[error("cannot connect to {url}: {source}")]
    Connect { url: Url, source: io::Error },
    #[error("cannot connect to {url}: {source}")]
    Tls { url: Url, source: TlsError },
    #[error("{url} does not speak HTTP/2: {source}")]
    Http { url: Url, source: hyper::Error },
    #[error("cannot connect to {0}: timed out")]
    TimedOut(Url),
    #[error("{0} needs certificates: no certificate authority is configured for dialing")]
    NoTls(Url),
}

/// Opens connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dialer {
    settings: Arc<Settings>,
    tls: Option<Arc<ClientTls>>,
}

/// Sends requests over one connection. Cheap to clone; a request on a broken
/// connection fails.
pub struct Link<B> {
    requests: http2::SendRequest<B>,
    scheme: UriScheme,
    authority: Authority,
    /// What each request carries besides its own headers.
    headers: Arc<HeaderMap>,
}

/// Drives a connection; ends with it. Dropping it breaks the connection.
pub type Connection = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

/// The bodies that requests can have.
pub trait RequestBody:
    Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static
{
}

impl<B> RequestBody for B where
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + Unpin
        + 'static
{
}

impl Dialer {
    pub fn new(settings: Settings) -> Dialer {
        Dialer {
            tls: settings.tls.clone().map(Arc::new),
            settings: Arc::new(settings),
        }
    }

    /// Connects to a port. Each request will carry `headers`.
    pub async fn dial<B: RequestBody>(
        &self,
        url: &Url,
        headers: HeaderMap,
    ) -> Result<(Link<B>, Connection), DialError> {
        let connecting = self.connect(url, headers);
        match tokio::time::timeout(self.settings.connect_limit, connecting).await {
            Ok(result) => result,
            Err(_) => Err(DialError::TimedOut(url.clone())),
        }
    }

    async fn connect<B: RequestBody>(
        &self,
        url: &Url,
        headers: HeaderMap,
    ) -> Result<(Link<B>, Connection), DialError> {
        let failed = |source| DialError::Connect {
            url: url.clone(),
            source,
        };
        if let Some((host, port)) = url.host_and_port() {
            let stream = connect_tcp(host, port, self.settings.local_address).await;
            let stream = stream.map_err(failed)?;
            tune(&stream);
            return self.secure(url, host, stream, headers).await;
        }
        let path = url.socket_file().unwrap_or_default();
        let stream = UnixStream::connect(path).await.map_err(failed)?;
        self.secure(url, "localhost", stream, headers).await
    }

    async fn secure<S, B>(
        &self,
        url: &Url,
        host: &str,
        stream: S,
        headers: HeaderMap,
    ) -> Result<(Link<B>, Connection), DialError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        B: RequestBody,
    {
        if !url.scheme().is_tls() {
            return self.handshake(url, stream, headers).await;
        }
        let Some(tls) = &self.tls else {
            return Err(DialError::NoTls(url.clone()));
        };
        let stream = Arc::clone(tls).connect(host, stream).await;
        let stream = stream.map_err(|source| DialError::Tls {
            url: url.clone(),
            source,
        })?;
        self.handshake(url, stream, headers).await
    }

    async fn handshake<S, B>(
        &self,
        url: &Url,
        stream: S,
        headers: HeaderMap,
    ) -> Result<(Link<B>, Connection), DialError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        B: RequestBody,
    {
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .keep_alive_interval(self.settings.ping_interval)
            .keep_alive_timeout(self.settings.ping_timeout)
            .handshake(TokioIo::new(stream))
            .await;
        let (requests, connection) = handshake.map_err(|source| DialError::Http {
            url: url.clone(),
            source,
        })?;
        let link = Link {
            requests,
            scheme: match url.scheme().is_tls() {
                true => UriScheme::HTTPS,
                false => UriScheme::HTTP,
            },
            authority: authority(url),
            headers: Arc::new(headers),
        };
        Ok((link, Box::pin(connection)))
    }
}

/// Tries the addresses of a host in turn.
async fn connect_tcp(host: &str, port: u16, local: Option<IpAddr>) -> io::Result<TcpStream> {
    let Some(local) = local else {
        return TcpStream::connect((host, port)).await;
    };
    let mut failure = io::Error::new(
        io::ErrorKind::AddrNotAvailable,
        format!("{host} has no address of the kind of {local}"),
    );
    for remote in lookup_host((host, port)).await? {
        if remote.is_ipv4() != local.is_ipv4() {
            continue;
        }
        match connect_from(local, remote).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn connect_from(local: IpAddr, remote: SocketAddr) -> io::Result<TcpStream> {
    let socket = match remote {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.bind(SocketAddr::new(local, 0))?;
    socket.connect(remote).await
}

/// The host and port of a URL; a socket file has neither.
fn authority(url: &Url) -> Authority {
    let text = url.as_str().split_once("://").map(|(_, rest)| rest);
    let text = text.filter(|_| url.host_and_port().is_some());
    text.and_then(|text| text.parse().ok())
        .unwrap_or_else(|| Authority::from_static("localhost"))
}

impl<B> Clone for Link<B> {
    fn clone(&self) -> Link<B> {
        Link {
            requests: self.requests.clone(),
            scheme: self.scheme.clone(),
            authority: self.authority.clone(),
            headers: Arc::clone(&self.headers),
        }
    }
}

impl<B: RequestBody> Service<Request<B>> for Link<B> {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>> + Send + 'static>>;

    /// Always: whether the connection is there, the call finds out, and its
    /// error then says more.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        // A request without a path asks for the root.
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        for (name, value) in &*self.headers {
            request.headers_mut().insert(name, value.clone());
        }
        Box::pin(self.requests.send_request(request))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn connections_come_from_the_given_address() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for local in ["127.0.0.1", "127.0.0.2"] {
            let local: IpAddr = local.parse().unwrap();
            let stream = connect_tcp("localhost", port, Some(local)).await.unwrap();
            let (_accepted, peer) = listener.accept().await.unwrap();
            assert_eq!(peer, stream.local_addr().unwrap());
            assert_eq!(peer.ip(), local);
        }
        let local = Some("::1".parse().unwrap());
        let failure = connect_tcp("127.0.0.1", port, local).await.unwrap_err();
        assert_eq!(failure.kind(), io::ErrorKind::AddrNotAvailable);
    }
}
