//! The ports: sockets, connections, and what serves each request.
//!
//! One client port carries gRPC and plain HTTP, with or without TLS: a
//! connection is HTTP/1 or HTTP/2 by its first bytes, and which side answers a
//! request is settled in `dispatch`. The two sides are given as two services;
//! this file knows neither. One connection is the business of `connection`.
//!
//! Stopping is designed: [`serve`] stops accepting, lets running calls end,
//! tells clients to go elsewhere (GOAWAY), and closes what is still open after
//! [`DRAIN_LIMIT`]. Whoever owns endless streams must end them, or that limit
//! is what ends them.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::access::Access;
use super::connection::{BoxError, Protocol};
use super::dispatch::{Dispatch, IsTls};
use super::{Url, tls};

/// How long running calls may take to end once the server stops. Writes end
/// within their own time-out of a few seconds or are lost causes.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// How long a TLS handshake may take. A live client needs milliseconds.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// After how long without traffic the kernel probes whether a client is there.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// Connections that wait to be accepted; the kernel lowers it to its own limit.
const BACKLOG: u32 = 4096;

/// File descriptors that connections leave for everything else (etcd's number).
const RESERVED_DESCRIPTORS: u64 = 150;

/// Calls that a member may have under way at another one: its raft messages,
/// and what its clients have asked for that only the leader knows. More wait
/// for their turn on the calling side.
const PEER_STREAMS: u32 = 4096;

/// Settings of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// HTTP/2 streams a connection may have at a time.
    pub max_concurrent_streams: u32,
    /// After how long without traffic a client is pinged; none: never.
    pub ping_interval: Option<Duration>,
    /// How long a client may take to answer a ping.
    pub ping_timeout: Duration,
    /// A client that pings more often is sent away (LIM-8).
    pub min_ping_interval: Duration,
}

impl Settings {
    /// For the port that members use among each other: nobody is sent away for
    /// pinging, and one that has gone silent is noticed soon after it would
    /// have lost an election.
    pub fn for_peers(election_timeout: Duration) -> Settings {
        Settings {
            max_concurrent_streams: PEER_STREAMS,
            ping_interval: Some(election_timeout),
            ping_timeout: election_timeout,
            min_ping_interval: Duration::ZERO,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// SO_REUSEPORT: several processes may listen on one port.
    pub reuses_port: bool,
}

/// What answers on a listener.
#[derive(Clone)]
pub enum Services<G> {
    /// Calls to `grpc`, the rest to `http`, which has its own access checked.
    Both {
        grpc: G,
        http: Router,
        /// Of pages.
        access: Arc<Access>,
    },
    /// Calls only.
    Grpc { grpc: G, access: Arc<Access> },
    /// Everything to one side.
    One(G),
}

/// One side: the service of gRPC, or a router.
pub trait Side:
    tower::Service<
        Request<Incoming>,
        Response = Response<Self::Body>,
        Error = Infallible,
        Future: Send + Unpin + 'static,
    > + Clone
    + Send
    + Sync
    + 'static
{
    type Body: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static;
}

impl<S, B> Side for S
where
    S: tower::Service<
            Request<Incoming>,
            Response = Response<B>,
            Error = Infallible,
            Future: Send + Unpin + 'static,
        > + Clone
        + Send
        + Sync
        + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Body = B;
}

#[derive(Debug, Error)]
#[error("cannot listen on {url}: {source}")]
pub struct BindError {
    pub url: Url,
    pub source: io::Error,
}

/// A socket that accepts connections, but whose connections nobody serves yet.
#[derive(Debug)]
pub struct Listener {
    /// One, or several that differ in nothing but whether they speak TLS.
    urls: Vec<Url>,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        /// Removed when the socket is dropped.
        _file: SocketFile,
    },
}

/// The file of a Unix socket, removed with it.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody else may have removed it, which is just as well.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Opens the socket of `url`. Must be called in a tokio runtime.
    pub fn bind(url: &Url, options: &SocketOptions) -> Result<Listener, BindError> {
        let socket = match (url.host_and_port(), url.socket_file()) {
            (Some((host, port)), _) => bind_tcp(host, port, options).map(Socket::Tcp),
            (None, Some(path)) => bind_unix(path),
            (None, None) => unreachable!("a URL has a port or a file"),
        };
        match socket {
            Ok(socket) => Ok(Listener {
                urls: vec![url.clone()],
                socket,
            }),
            Err(source) => Err(BindError {
                url: url.clone(),
                source,
            }),
        }
    }

    /// Opens the sockets of `urls`. Those for one host and port, with and without
    /// TLS, share a socket; a connection's first byte tells which it wants.
    pub fn bind_all(urls: &[Url], options: &SocketOptions) -> Result<Vec<Listener>, BindError> {
        let mut listeners: Vec<Listener> = Vec::new();
        for url in urls {
            let address = url.host_and_port();
            let shares = |listener: &&mut Listener| {
                address.is_some() && listener.urls[0].host_and_port() == address
            };
            match listeners.iter_mut().find(shares) {
                Some(listener) => listener.urls.push(url.clone()),
                None => listeners.push(Listener::bind(url, options)?),
            }
        }
        Ok(listeners)
    }

    pub fn urls(&self) -> &[Url] {
        &self.urls
    }

    /// The address with the port the kernel has chosen, if port 0 was asked
    /// for. None for a socket file.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix { .. } => None,
        }
    }
}

/// `localhost` is tried as IPv4 first, as Go does.
fn bind_tcp(host: &str, port: u16, options: &SocketOptions) -> io::Result<TcpListener> {
    if host != "localhost" {
        let address: IpAddr = host.parse().map_err(|_| io::ErrorKind::AddrNotAvailable)?;
        return bind_address(SocketAddr::new(address, port), options);
    }
    bind_address((Ipv4Addr::LOCALHOST, port).into(), options).or_else(|error| {
        let has_no_ipv4 = error.kind() == io::ErrorKind::AddrNotAvailable;
        if has_no_ipv4 {
            bind_address((Ipv6Addr::LOCALHOST, port).into(), options)
        } else {
            Err(error)
        }
    })
}

fn bind_address(address: SocketAddr, options: &SocketOptions) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A restart must not wait for the last connections of the process before.
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(options.reuses_port)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn bind_unix(path: PathBuf) -> io::Result<Socket> {
    // Left behind by a process that was killed.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    Ok(Socket::Unix {
        listener,
        _file: SocketFile(path),
    })
}

/// Serves `services` on all of `listeners` until `shutdown`, then drains.
/// `tls` must be there if a listener's URL asks for TLS.
pub async fn serve<G: Side>(
    listeners: Vec<Listener>,
    services: Services<G>,
    tls: Option<tls::Settings>,
    settings: Settings,
    shutdown: CancellationToken,
) {
    let tls = tls.map(Arc::new);
    let mut loops = JoinSet::new();
    for listener in listeners {
        let (secured, plain): (Vec<_>, _) =
            listener.urls.iter().partition(|url| url.scheme().is_tls());
        let security = match (secured.is_empty(), &tls) {
            (true, _) => Security::Plain,
            (false, Some(tls)) if plain.is_empty() => Security::Tls(Arc::clone(tls)),
            (false, Some(tls)) => Security::Either(Arc::clone(tls)),
            (false, None) => unreachable!("{} has its TLS", secured[0]),
        };
        let port = Arc::new(Port {
            url: listener.urls[0].clone(),
            services: services.clone(),
            security,
            protocol: Protocol::new(&settings),
            shutdown: shutdown.clone(),
        });
        loops.spawn(port.accept_all(listener.socket));
    }
    while let Some(result) = loops.join_next().await {
        if let Err(error) = result {
            error!(%error, "a listener stopped");
        }
    }
}

/// What the connections of one listener share.
struct Port<G> {
    url: Url,
    services: Services<G>,
    security: Security,
    protocol: Protocol,
    shutdown: CancellationToken,
}

/// What a listener speaks below HTTP.
enum Security {
    Plain,
    Tls(Arc<tls::Settings>),
    /// What the connection's first byte says.
    Either(Arc<tls::Settings>),
}

impl Security {
    /// For sockets on which it does not depend on the connection.
    fn only(&self) -> Option<&Arc<tls::Settings>> {
        match self {
            Security::Plain => None,
            Security::Tls(tls) | Security::Either(tls) => Some(tls),
        }
    }

    /// For one connection. Waits for its first byte if that settles it; a client
    /// that goes before is left to the HTTP side, which notices.
    async fn of(&self, stream: &TcpStream) -> Option<&Arc<tls::Settings>> {
        let Security::Either(tls) = self else {
            return self.only();
        };
        let mut byte = [0];
        let is_tls = matches!(stream.peek(&mut byte).await, Ok(1)) && byte[0] == TLS_HANDSHAKE;
        is_tls.then_some(tls)
    }
}

/// What every TLS connection begins with: the type of a handshake record (RFC
/// 8446, section 5.1). No HTTP does.
const TLS_HANDSHAKE: u8 = 0x16;

impl<G: Side> Port<G> {
    /// Accepts until the server stops, then waits for the connections to end.
    async fn accept_all(self: Arc<Self>, socket: Socket) {
        let max_connections = max_connections();
        let slots = Arc::new(Semaphore::new(max_connections as usize));
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => break,
                accepted = self.accept(&socket, &slots) => accepted,
            };
            // Out of descriptors, most likely; pausing beats spinning.
            if let Err(error) = accepted {
                error!(url = %self.url, %error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        drop(socket);
        debug!(url = %self.url, "no more connections are accepted");
        // Each connection holds a slot, so all slots free means all are closed.
        let _ = slots.acquire_many(max_connections).await;
    }

    async fn accept(self: &Arc<Self>, socket: &Socket, slots: &Arc<Semaphore>) -> io::Result<()> {
        let slot = Arc::clone(slots)
            .acquire_owned()
            .await
            .map_err(io::Error::other)?;
        let port = Arc::clone(self);
        match socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                tune(&stream);
                tokio::spawn(async move {
                    let _slot = slot;
                    let tls = tokio::select! {
                        tls = port.security.of(&stream) => tls,
                        () = port.shutdown.cancelled() => return,
                    };
                    port.greet(stream, Some(peer), tls).await;
                });
            }
            Socket::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(async move {
                    let _slot = slot;
                    port.greet(stream, None, port.security.only()).await;
                });
            }
        }
        Ok(())
    }

    /// Takes a connection through its handshake, if there is to be one. Without
    /// an address it came over a socket file.
    async fn greet<S>(
        &self,
        stream: S,
        address: Option<SocketAddr>,
        tls: Option<&Arc<tls::Settings>>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let peer = address.map_or("unix".to_owned(), |address| address.to_string());
        let peer = peer.as_str();
        let Some(tls) = tls else {
            return self.serve(stream, peer, false).await;
        };
        let accepted = Arc::clone(tls).accept(stream, address.map(|address| address.ip()));
        let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, accepted);
        let result = tokio::select! {
            result = handshake => result,
            () = self.shutdown.cancelled() => return,
        };
        match result {
            Ok(Ok(stream)) => self.serve(stream, peer, true).await,
            Ok(Err(error)) => warn!(url = %self.url, peer, %error, "rejected a connection"),
            Err(_) => warn!(url = %self.url, peer, "rejected a connection: no TLS handshake"),
        }
    }

    async fn serve<S>(&self, stream: S, peer: &str, is_tls: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let dispatch = Dispatch {
            services: self.services.clone(),
            is_tls: IsTls(is_tls),
        };
        let serving = self.protocol.serve(stream, peer, dispatch, &self.shutdown);
        serving.await;
    }
}

pub(super) fn tune(stream: &TcpStream) {
    let keepalive = socket2::TcpKeepalive::new().with_time(TCP_KEEPALIVE);
    // Without these the connection still works.
    let tuned = stream
        .set_nodelay(true)
        .and_then(|()| socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive));
    if let Err(error) = tuned {
        debug!(%error, "cannot tune a connection");
    }
}

/// How many connections one listener takes: what the limit on descriptors
/// leaves. More would starve the store of files.
fn max_connections() -> u32 {
    let limit = rlimit::Resource::NOFILE.get_soft().unwrap_or(1024);
    let limit = limit.saturating_sub(RESERVED_DESCRIPTORS).max(1);
    // A semaphore counts no further than half a usize, and no machine that far.
    u32::try_from(limit).unwrap_or(u32::MAX).min(1 << 24)
}
