//! Typed clients of one server, without limits on message sizes.

use stele::proto::client::etcdserverpb::cluster_client::ClusterClient;
use stele::proto::client::etcdserverpb::kv_client::KvClient;
use stele::proto::client::etcdserverpb::lease_client::LeaseClient;
use stele::proto::client::etcdserverpb::maintenance_client::MaintenanceClient;
use stele::proto::client::etcdserverpb::watch_client::WatchClient;
use tonic::transport::{Channel, Endpoint};

/// Cheap to clone; all clients of one value share one connection.
#[derive(Clone)]
pub struct Clients {
    pub kv: KvClient<Channel>,
    pub watch: WatchClient<Channel>,
    pub lease: LeaseClient<Channel>,
    pub maintenance: MaintenanceClient<Channel>,
    pub cluster: ClusterClient<Channel>,
}

impl Clients {
    pub fn new(channel: Channel) -> Clients {
        Clients {
            kv: KvClient::new(channel.clone())
                .max_decoding_message_size(usize::MAX)
                .max_encoding_message_size(usize::MAX),
            watch: WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            lease: LeaseClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            maintenance: MaintenanceClient::new(channel.clone())
                .max_decoding_message_size(usize::MAX),
            cluster: ClusterClient::new(channel),
        }
    }
}

/// A connection that is made with the first request and made again after a
/// failure. The windows are large because tests read answers of many MiB and
/// must not measure flow control.
pub fn channel(url: &str) -> Channel {
    const WINDOW_BYTES: u32 = 16 << 20;
    Endpoint::from_shared(url.to_owned())
        .expect("an address of our own making")
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect_lazy()
}
