//! The composition root: opens every part, wires them, starts and stops them.
//!
//! The only place that knows everyone; each part is given the handles it
//! needs and its own small settings, never the node. What follows from a
//! commit (watchers, leases) is wired here too, so that the layers below need
//! not know who listens.
//!
//! A node starts in this order: the data directory is locked and certificates
//! are looked at, ports for probes, the state, the port for peers, consensus.
//! Then it waits for its cluster: clients are served once it has made itself
//! known through the log, which takes a majority.
//!
//! A node stops in this order: leadership is handed over, clients' ports accept
//! no more, watch streams end, running calls finish, for which the other members
//! are still needed; then the peers' port closes, the log drains into the state,
//! the state is flushed.

mod clients;
mod founding;
mod probe;
mod settings;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::watch as value;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::chores::{auto_compact, check_hash, checkpoint_leases, expire_leases};
use crate::config::{Config, ConfigError, SelfMades};
use crate::consensus::transfer::{self, Outgoing};
use crate::consensus::{self, Consensus, Links, PeerTransport, Peers, ProposeError};
use crate::http::listener::{self, BindError, Listener, Services};
use crate::http::tls::{SelfMadeError, TlsError};
use crate::http::{self, Url, Versions};
use crate::lease::Lessor;
use crate::machine::{Effects, LeaseChange, Published};
/// What this server says it is.
pub use crate::rpc::SERVER_VERSION;
use crate::rpc::{self, STORAGE_VERSION};
use crate::storage::data_dir::{DataDir, open_data_dir};
use crate::storage::{OpenError, StorageError};
use crate::watch::Hub;
use clients::Clients;
use founding::Opened;
use probe::Probe;

/// Why a node did not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    SelfMade(#[from] SelfMadeError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Consensus(#[from] consensus::StartError),
    #[error(
        "cannot fetch cluster info from peer urls: could not retrieve cluster information from \
         the given URLs"
    )]
    NoCluster,
    #[error("cannot prepare for the transfer of states: {0}")]
    Transfer(#[source] std::io::Error),
    #[error("cannot make this member known: {0}")]
    Publish(#[source] ProposeError),
    #[error("opening the store was interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Why a node cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// A write or a sync has failed.
    Failed,
    /// The cluster goes on without this member (CLU-8).
    Removed,
}

/// A running server.
pub struct Node {
    consensus: Consensus,
    threads: consensus::Threads,
    peers: Peers,
    outgoing: Outgoing,
    published: Arc<Published>,
    member_id: u64,
    hub: Arc<Hub>,
    client_addrs: Vec<SocketAddr>,
    /// Clients are served.
    is_ready: value::Receiver<bool>,
    /// They never will be: this member has other data than the others.
    unfit: CancellationToken,
    chores: Chores,
    /// Of clients and probes.
    listeners: Listeners,
    peer_listeners: Listeners,
    /// Holds the lock on the directory; released last.
    data_dir: DataDir,
}

/// The chores, which run until they are stopped, and who looks after them.
struct Chores {
    supervisor: JoinHandle<()>,
    stopping: CancellationToken,
    /// One of them has ended by a panic.
    broken: CancellationToken,
}

impl Chores {
    fn supervise(mut running: JoinSet<()>) -> Chores {
        let (stopping, broken) = (CancellationToken::new(), CancellationToken::new());
        let (stopped, report) = (stopping.clone(), broken.clone());
        let supervisor = tokio::spawn(async move {
            let supervising = async {
                while let Some(ended) = running.join_next().await {
                    // One that has nothing to do ends well.
                    if let Err(error) = ended {
                        error!(%error, "a chore has ended");
                        report.cancel();
                    }
                }
            };
            tokio::select! {
                () = supervising => {}
                () = stopped.cancelled() => running.shutdown().await,
            }
        });
        Chores {
            supervisor,
            stopping,
            broken,
        }
    }

    /// Returns when none of them runs any more: they hold the store.
    async fn stop(self) {
        self.stopping.cancel();
        if let Err(error) = self.supervisor.await {
            error!(%error, "the chores did not end cleanly");
        }
    }
}

/// Listeners that stop together.
struct Listeners {
    /// End by themselves after `shutdown`, when their calls have finished.
    serving: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Listeners {
    fn new() -> Listeners {
        Listeners {
            serving: JoinSet::new(),
            shutdown: CancellationToken::new(),
        }
    }

    /// Waits for the calls under way, once `shutdown` has been told.
    async fn drain(mut self) {
        let drained = async { while self.serving.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_LIMIT, drained).await.is_err() {
            warn!("cut off the calls that were still running");
            self.serving.shutdown().await;
        }
    }
}

/// The sockets of a node that are bound before anything is opened, so that a
/// port in use is known at once.
struct Ports {
    client: Vec<Listener>,
    client_http: Vec<Listener>,
    metrics: Vec<Listener>,
}

impl Node {
    /// Opens the data directory and serves. Returns once clients are served,
    /// which in a cluster takes a majority of its members.
    ///
    /// # Errors
    /// As [`Node::open`], or when this member had to stop before.
    pub async fn start(config: Config) -> Result<Node, StartError> {
        let node = Node::open(config).await?;
        node.ready().await?;
        Ok(node)
    }

    /// Opens the data directory and takes part in the cluster. Returns before
    /// clients are served, see [`Node::ready`].
    ///
    /// # Errors
    /// When a port, a certificate or the data directory cannot be used, or
    /// when the options do not fit the data or the cluster.
    pub async fn open(config: Config) -> Result<Node, StartError> {
        let ports = Ports::bind(&config)?;
        let data_dir = open_directory(&config).await?;
        let client_addrs = ports.client.iter().filter_map(Listener::local_addr);
        let client_addrs: Vec<SocketAddr> = client_addrs.collect();
        let mut listeners = Listeners::new();
        let mut peer_listeners = Listeners::new();
        let probes = http::State::new(Versions {
            server: SERVER_VERSION.to_owned(),
            cluster: STORAGE_VERSION.to_owned(),
            storage: STORAGE_VERSION.to_owned(),
        });
        listeners.serving.spawn(listener::serve(
            ports.metrics,
            Services::One(http::metrics_router(probes.clone())),
            metrics_tls(&config),
            config.connections.clone(),
            listeners.shutdown.clone(),
        ));

        let Opened {
            data_dir,
            engine,
            identity,
            machine,
            store,
        } = founding::open(&config, data_dir).await?;
        // Not before: who founds a cluster asks the other founders whether they
        // have started, and a port that accepts and does not answer would keep
        // them waiting for each other.
        let peer_ports = bind(&config, &config.listen.peer)?;
        let published = machine.published();
        let hub = Hub::new(store.clone(), settings::watch(&config));
        let lessor = Arc::new(Lessor::new(
            machine.leases(),
            config.election_timeout,
            Instant::now(),
        ));
        let (inbox, events) = consensus::inbox();
        let transfer = settings::transfer(&data_dir, identity);
        let (outgoing, incoming) = {
            let (engine, inbox) = (engine.clone(), inbox.clone());
            let runtime = Handle::current();
            let opening = move || transfer::open(transfer, engine, inbox, runtime);
            let opened = tokio::task::spawn_blocking(opening).await?;
            opened.map_err(StartError::Transfer)?
        };
        let transport = PeerTransport::new(
            settings::transport(&config, identity),
            inbox,
            Some(Box::new(outgoing.clone())),
        );
        let peers = transport.peers();
        outgoing.connect(peers.clone());
        let subject = check_hash::Subject {
            store: store.clone(),
            peers: peers.clone(),
            published: published.clone(),
            member_id: identity.member_id,
        };
        let links = Links {
            transport: Box::new(transport),
            source: Box::new(outgoing.clone()),
            installer: Box::new(incoming.clone()),
        };
        let (consensus, threads) = consensus::start(
            settings::consensus(&config, &data_dir, identity),
            machine,
            engine.clone(),
            events,
            links,
            spread_effects(hub.clone(), lessor.clone()),
        )?;
        probes.serve(Arc::new(Probe {
            consensus: consensus.clone(),
            store: store.clone(),
            published: published.clone(),
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
        }));
        let (grpc, peer_service) = rpc::services(rpc::Handles {
            consensus: consensus.clone(),
            store: store.clone(),
            hub: hub.clone(),
            lessor: lessor.clone(),
            engine,
            published: published.clone(),
            peers: peers.clone(),
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
            settings: settings::rpc(&config),
            shutdown: listeners.shutdown.clone(),
        });
        peer_listeners.serving.spawn(listener::serve(
            peer_ports,
            Services::Both {
                grpc: peers
                    .routes(peer_service, Some(Arc::new(incoming)))
                    .into_axum_router(),
                http: http::peer_router(probes.clone()),
                access: Arc::default(),
            },
            config.peer_tls.listen.clone(),
            listener::Settings::for_peers(config.election_timeout),
            peer_listeners.shutdown.clone(),
        ));

        let mut chores = JoinSet::new();
        chores.spawn(expire_leases::run(consensus.clone(), lessor.clone()));
        if config.cluster.has_lease_checkpoints {
            chores.spawn(checkpoint_leases::run(consensus.clone(), lessor));
        }
        chores.spawn(auto_compact::run(
            consensus.clone(),
            store,
            settings::auto_compaction(&config),
        ));
        if let Some(interval) = config.cluster.corruption_check_interval {
            chores.spawn(check_hash::run(
                consensus.clone(),
                subject.clone(),
                interval,
            ));
        }
        let (ready, is_ready) = value::channel(false);
        let access = Arc::new(config.access.clone());
        let http = http::router(probes, access.clone(), config.has_gateway);
        let services = if ports.client_http.is_empty() {
            (Services::Both { grpc, http, access }, None)
        } else {
            let grpc = Services::Grpc { grpc, access };
            (grpc, Some(Services::One(http)))
        };
        let unfit = CancellationToken::new();
        let clients = Clients {
            check_first: config.cluster.checks_corruption_first.then_some(subject),
            unfit: unfit.clone(),
            client: ports.client,
            client_http: ports.client_http,
            services,
            shutdown: listeners.shutdown.clone(),
        };
        listeners.serving.spawn(clients.serve(
            config,
            consensus.clone(),
            published.clone(),
            identity.member_id,
            ready,
        ));
        Ok(Node {
            consensus,
            threads,
            peers,
            outgoing,
            published,
            member_id: identity.member_id,
            hub,
            client_addrs,
            is_ready,
            unfit,
            chores: Chores::supervise(chores),
            listeners,
            peer_listeners,
            data_dir,
        })
    }

    /// Resolves when clients are served.
    ///
    /// # Errors
    /// When this member cannot go on before it comes to that.
    pub async fn ready(&self) -> Result<(), StartError> {
        let mut is_ready = self.is_ready.clone();
        tokio::select! {
            ready = is_ready.wait_for(|is_ready| *is_ready) => {
                ready.map(drop).map_err(|_| StartError::Publish(ProposeError::Stopped))
            }
            _ = self.wait() => Err(StartError::Publish(ProposeError::Stopped)),
        }
    }

    /// Addresses on which clients are served, with the ports the kernel chose
    /// where port 0 was asked for.
    pub fn client_addrs(&self) -> &[SocketAddr] {
        &self.client_addrs
    }

    /// Resolves when this node can serve no longer. It should then be stopped.
    pub async fn wait(&self) -> Ending {
        let removed = async {
            tokio::select! {
                () = self.consensus.removed() => {}
                () = self.peers.removed() => {}
            }
        };
        let failed = async {
            tokio::select! {
                () = self.consensus.failed() => {}
                () = self.unfit.cancelled() => {}
                () = self.chores.broken.cancelled() => {}
                () = self.hub.broken() => error!("the thread for watchers that are behind has ended"),
            }
        };
        let stay = || tokio::time::sleep(REMOVED_STAY);
        ending(failed, removed, stay).await
    }

    /// Hands over what others can do, stops serving, finishes what has been
    /// accepted, closes the store.
    pub async fn stop(self) {
        self.hand_over().await;
        let Node {
            threads,
            peers,
            outgoing,
            hub,
            chores,
            listeners,
            peer_listeners,
            data_dir,
            ..
        } = self;
        listeners.shutdown.cancel();
        hub.close();
        // Writes and reads under way end by what the other members say.
        listeners.drain().await;
        chores.stop().await;
        // Transfers hold the state open.
        outgoing.close();
        peers.close();
        peer_listeners.shutdown.cancel();
        peer_listeners.drain().await;
        if let Err(error) = tokio::task::spawn_blocking(move || threads.stop()).await {
            error!(%error, "the log did not close cleanly");
        }
        drop(data_dir);
    }

    /// Gives up leadership, so that the others need not miss this member first:
    /// to the voter that has been connected for longest, as etcd does.
    async fn hand_over(&self) {
        if !self.consensus.status().is_leader || self.consensus.has_failed() {
            return;
        }
        let members = self.published.members();
        let others = members
            .iter()
            .filter(|each| each.id != self.member_id && !each.is_learner);
        let connected =
            others.filter_map(|each| Some((self.peers.is_connected(each.id)?, each.id)));
        let Some((_, to)) = connected.max() else {
            return;
        };
        let transfer = self.consensus.transfer_leadership(to);
        let to = format!("{to:x}");
        match tokio::time::timeout(HAND_OVER_LIMIT, transfer).await {
            Ok(Ok(())) => info!(to, "leadership is handed over"),
            Ok(Err(error)) => warn!(to, %error, "leadership was not handed over"),
            Err(_) => warn!(to, "leadership was not handed over in time"),
        }
    }
}

/// How the node ends, once it does. One that was removed stays for a while.
async fn ending<S: Future<Output = ()>>(
    failed: impl Future<Output = ()>,
    removed: impl Future<Output = ()>,
    stay: impl FnOnce() -> S,
) -> Ending {
    let mut failed = std::pin::pin!(failed);
    tokio::select! {
        () = &mut failed => return Ending::Failed,
        () = removed => {}
    }
    tokio::select! {
        () = failed => Ending::Failed,
        () = stay() => Ending::Removed,
    }
}

/// For how long a removed member takes part after it has heard of it. The
/// others may learn only from its last messages that the removal is committed,
/// and until then cannot do without its vote: one of two would be stuck for
/// good. As etcd's `stopWithDelay`.
const REMOVED_STAY: Duration = Duration::from_secs(1);

/// How long the calls under way may take to finish when the node stops.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How long handing over leadership may take when the node stops: a healthy
/// cluster needs milliseconds, and the others would elect a leader by
/// themselves soon after.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(3);

impl Ports {
    fn bind(config: &Config) -> Result<Ports, BindError> {
        Ok(Ports {
            client: bind(config, &config.listen.client)?,
            client_http: bind(config, &config.listen.client_http)?,
            metrics: bind(config, &config.listen.metrics)?,
        })
    }
}

fn bind(config: &Config, urls: &[Url]) -> Result<Vec<Listener>, BindError> {
    Listener::bind_all(urls, &config.listen.sockets)
}

/// Opens the data directory, which is also where certificates are that the
/// server makes for itself.
async fn open_directory(config: &Config) -> Result<DataDir, StartError> {
    let config = config.clone();
    let opening = move || -> Result<DataDir, StartError> {
        let data_dir = open_data_dir(&config.data_dir)?;
        let SelfMades { client, peer } = &config.self_made;
        for self_made in [client, peer].into_iter().flatten() {
            self_made.make_if_missing()?;
        }
        check_tls(&config)?;
        Ok(data_dir)
    };
    tokio::task::spawn_blocking(opening).await?
}

/// The ports for metrics compare a client's address with its certificate, as
/// etcd does there and not on the client port (server/embed/etcd.go,
/// `createMetricsListener`).
fn metrics_tls(config: &Config) -> Option<http::tls::Settings> {
    let tls = config.tls.clone()?;
    Some(http::tls::Settings {
        checks_origin: true,
        ..tls
    })
}

/// Reads all certificates once, so that a start fails on a bad one.
fn check_tls(config: &Config) -> Result<(), TlsError> {
    for settings in [&config.tls, &config.peer_tls.listen].into_iter().flatten() {
        settings.check()?;
    }
    match &config.peer_tls.dial {
        Some(dial) => dial.check(),
        None => Ok(()),
    }
}

/// Changes reach watchers and leases reach the lessor after the commit and
/// before the replies.
fn spread_effects(hub: Arc<Hub>, lessor: Arc<Lessor>) -> Box<dyn FnMut(&Effects) + Send> {
    Box::new(move |effects| {
        if let Some(reloaded) = &effects.reloaded {
            lessor.reset(reloaded.leases.iter().copied(), Instant::now());
            hub.replaced(reloaded.revision);
        }
        for change in &effects.leases {
            match *change {
                LeaseChange::Granted { id, ttl_seconds } => lessor.granted(id, ttl_seconds),
                LeaseChange::Revoked { id } => lessor.revoked(id),
                LeaseChange::Checkpointed {
                    id,
                    remaining_seconds,
                    sequence,
                } => lessor.checkpointed(id, remaining_seconds, sequence),
            }
        }
        if !effects.events.is_empty() {
            hub.publish(&effects.events);
        }
    })
}
