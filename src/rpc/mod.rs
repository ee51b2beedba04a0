//! The gRPC edge: one file per service, and what they share.
//!
//! A service method validates, calls and wraps; it knows the wire types and
//! nothing of rocksdb, raft or threads. What every request may look like is in
//! `validate`, how errors read in `status`, what headers say in `header`, and
//! what surrounds each call (metrics, metadata, deadlines) in `call`.
//! [`services`] puts all of them together; who listens is left to `http`.

mod auth;
mod call;
mod cluster;
mod election;
mod hashing;
pub mod header;
mod health;
mod kv;
mod lease;
mod lease_time;
mod lock;
mod maintenance;
mod pages;
mod peer_calls;
mod quota;
pub mod status;
#[cfg(test)]
mod tests;
mod timing;
pub mod validate;
pub mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::codec::CompressionEncoding;

use crate::consensus::{Consensus, Peers};
use crate::lease::Lessor;
use crate::machine::Published;
use crate::mvcc::Store;
use crate::proto;
use crate::proto::etcdserverpb::auth_server::AuthServer;
use crate::proto::etcdserverpb::cluster_server::ClusterServer;
use crate::proto::etcdserverpb::kv_server::KvServer;
use crate::proto::etcdserverpb::lease_server::LeaseServer;
use crate::proto::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::proto::etcdserverpb::watch_server::WatchServer;
use crate::proto::health::health_server::HealthServer;
use crate::proto::v3electionpb::election_server::ElectionServer;
use crate::proto::v3lockpb::lock_server::LockServer;
use crate::storage::Engine;
use crate::watch::Hub;
use call::Leadership;
pub use call::Services;
use cluster::Membership;
use hashing::Hashing;
use lease_time::LeaseTimes;
pub use peer_calls::PeerService;

/// The version of etcd whose behaviour this server shows. Clients parse it and
/// decide by it what they may ask for (CLI-5, CLI-18).
pub const SERVER_VERSION: &str = "3.7.3";

/// What etcd of that version says of its storage.
pub const STORAGE_VERSION: &str = "3.7.0";

/// A message may be larger than the largest request by so much; the request
/// then gets the server's own refusal instead of the library's (LIM-2).
const MESSAGE_OVERHEAD_BYTES: usize = 512 << 10;

/// How long a request waits for a leader, besides two election timeouts.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct Settings {
    /// LIM-1.
    pub max_request_bytes: usize,
    /// TXN-20.
    pub max_txn_ops: usize,
    /// `None`: no limit (MNT-12).
    pub quota_bytes: Option<u64>,
    /// Also settles how long a request waits for a leader (GEN-12, GEN-19).
    pub election_timeout: Duration,
    /// WAT-37.
    pub progress_notify_interval: Duration,
    /// CLU-7.
    pub checks_reconfiguration: bool,
    /// CLU-6.
    pub max_learners: u32,
}

impl Settings {
    /// GEN-12.
    fn request_timeout(&self) -> Duration {
        REQUEST_TIMEOUT + 2 * self.election_timeout
    }
}

/// What the services work with.
pub struct Handles {
    pub consensus: Consensus,
    pub store: Store,
    pub hub: Arc<Hub>,
    pub lessor: Arc<Lessor>,
    pub engine: Arc<Engine>,
    pub published: Arc<Published>,
    pub peers: Peers,
    pub cluster_id: u64,
    pub member_id: u64,
    pub settings: Settings,
    /// The server stops: what would never end by itself ends.
    pub shutdown: CancellationToken,
}

/// All services, ready to be listened for, and what peers may ask of this
/// member. Must be called on the runtime.
pub fn services(handles: Handles) -> (Services, Arc<PeerService>) {
    let Handles {
        consensus,
        store,
        hub,
        lessor,
        engine,
        published,
        peers,
        cluster_id,
        member_id,
        settings,
        shutdown,
    } = handles;
    let header = header::Source {
        cluster_id,
        member_id,
        consensus: consensus.clone(),
    };
    let quota = Arc::new(quota::Quota::new(
        settings.quota_bytes,
        member_id,
        store.clone(),
        consensus.clone(),
        published.clone(),
    ));
    let leadership = Leadership::follow(consensus.clone(), settings.election_timeout);
    call::initialize_metrics();
    crate::metrics::SERVER_QUOTA_BACKEND_BYTES.set(quota::shown(settings.quota_bytes));

    let kv = kv::Service::new(
        consensus.clone(),
        store.clone(),
        header.clone(),
        quota.clone(),
        kv::Limits {
            max_request_bytes: settings.max_request_bytes,
            max_txn_ops: settings.max_txn_ops,
        },
    );
    let watch = watch::Service::new(
        hub,
        header.clone(),
        watch::Settings {
            max_request_bytes: settings.max_request_bytes,
            progress_notify_interval: settings.progress_notify_interval,
        },
    );
    let times = Arc::new(LeaseTimes::new(
        consensus.clone(),
        lessor.clone(),
        engine.clone(),
        peers.clone(),
        settings.request_timeout(),
    ));
    let lease = lease::Service::new(
        consensus.clone(),
        store.clone(),
        lessor,
        times.clone(),
        header.clone(),
        quota,
    );
    let membership = Arc::new(Membership::new(
        consensus.clone(),
        published.clone(),
        peers,
        member_id,
        cluster::Settings {
            checks_reconfiguration: settings.checks_reconfiguration,
            max_learners: settings.max_learners,
            request_timeout: settings.request_timeout(),
        },
    ));
    let cluster = cluster::Service::new(membership.clone(), header.clone());
    let hashing = Hashing::new(store.clone(), header.clone());
    let peer_service = Arc::new(PeerService {
        times,
        membership,
        hashing: hashing.clone(),
        published: published.clone(),
        header: header.clone(),
    });
    let maintenance = maintenance::Service::new(
        consensus,
        store.clone(),
        engine,
        published,
        header.clone(),
        hashing,
        quota::shown(settings.quota_bytes),
    );
    let auth = auth::Service::new(store, header);

    let max_bytes = settings
        .max_request_bytes
        .saturating_add(MESSAGE_OVERHEAD_BYTES);
    /// A generated server with our limits.
    macro_rules! server {
        ($server:ident, $service:expr) => {
            $server::new($service)
                .max_decoding_message_size(max_bytes)
                .accept_compressed(CompressionEncoding::Gzip)
                .send_compressed(CompressionEncoding::Gzip)
        };
    }
    let services = Services::new(leadership, max_bytes)
        .add(server!(KvServer, kv))
        .add(server!(WatchServer, watch))
        .add(server!(LeaseServer, lease))
        .add(server!(ClusterServer, cluster))
        .add(server!(MaintenanceServer, maintenance))
        .add(server!(AuthServer, auth))
        .add(server!(LockServer, lock::Service))
        .add(server!(ElectionServer, election::Service))
        .add(server!(HealthServer, health::Service::new(shutdown)))
        .add(
            reflection()
                .build_v1()
                .expect("descriptors are compiled in"),
        )
        .add(
            reflection()
                .build_v1alpha()
                .expect("descriptors are compiled in"),
        );
    (services, peer_service)
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(proto::HEALTH_DESCRIPTORS)
}

/// Runs a long read off the runtime's own threads.
async fn run_blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(read).await {
        Ok(result) => result,
        // It panicked, or the runtime is going away.
        Err(_) => Err(status::STOPPED.into()),
    }
}
