//! Every metric of the process, once, as a table of contents.
//!
//! The names, types, labels and buckets are etcd's, because the dashboards and
//! alerts of its monitoring mixin must work unchanged; that is why some
//! `*_total` here are gauges. A metric is a static named after itself without
//! `etcd_`: whoever feeds `etcd_server_has_leader` writes
//! `metrics::SERVER_HAS_LEADER.set(1)`. All of them are registered the first
//! time anything is rendered, so a scrape shows zeros rather than gaps.
//!
//! The statics are the process's, not a member's: a process that runs several
//! members (tests do) sees their sums and last writes.
//!
//! Left out on purpose: the v2 store and gRPC proxy families, Go's runtime
//! metrics and bbolt's internals, which nothing here could feed.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// The content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);

/// Whether `grpc_server_handling_seconds` is fed, see [`set_extensive`].
static IS_EXTENSIVE: AtomicBool = AtomicBool::new(false);

/// What a row of the table says about one metric.
struct Spec {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    buckets: Buckets,
}

enum Buckets {
    /// For everything that is not a histogram.
    None,
    /// Bounds `start`, `start * factor`, ... (`count` of them).
    Exponential(f64, f64, usize),
    /// Bounds as they are.
    Bounds(&'static [f64]),
}

/// A row without labels and buckets.
const fn metric(name: &'static str, help: &'static str) -> Spec {
    Spec {
        name,
        help,
        labels: &[],
        buckets: Buckets::None,
    }
}

impl Spec {
    /// The names of the labels, in the order of `with_label_values`.
    const fn by(mut self, labels: &'static [&'static str]) -> Spec {
        self.labels = labels;
        self
    }

    /// Exponential buckets: first bound, factor, number of bounds.
    const fn exponential(mut self, start: f64, factor: f64, count: usize) -> Spec {
        self.buckets = Buckets::Exponential(start, factor, count);
        self
    }

    /// Buckets with the given upper bounds.
    const fn bounds(mut self, bounds: &'static [f64]) -> Spec {
        self.buckets = Buckets::Bounds(bounds);
        self
    }

    fn opts(&self) -> Opts {
        Opts::new(self.name, self.help)
    }

    fn histogram_opts(&self) -> HistogramOpts {
        let bounds = match self.buckets {
            Buckets::None => panic!("{} is a histogram without buckets", self.name),
            Buckets::Exponential(start, factor, count) => {
                prometheus::exponential_buckets(start, factor, count)
                    .expect("the table's buckets grow")
            }
            Buckets::Bounds(bounds) => bounds.to_vec(),
        };
        HistogramOpts::from(self.opts()).buckets(bounds)
    }
}

/// A kind of metric that a row can be made into.
trait Metric: Collector + Clone + Sized + 'static {
    fn make(spec: &Spec) -> prometheus::Result<Self>;
}

impl Metric for IntCounter {
    fn make(spec: &Spec) -> prometheus::Result<Self> {
        IntCounter::with_opts(spec.opts())
    }
}

impl Metric for IntGauge {
    fn make(spec: &Spec) -> prometheus::Result<Self> {
        IntGauge::with_opts(spec.opts())
    }
}

impl Metric for Histogram {
    fn make(spec: &Spec) -> prometheus::Result<Self> {
        Histogram::with_opts(spec.histogram_opts())
    }
}

impl Metric for IntCounterVec {
    fn make(spec: &Spec) -> prometheus::Result<Self> {
        IntCounterVec::new(spec.opts(), spec.labels)
    }
}

impl Metric for IntGaugeVec {
    fn make(spec: &Spec) -> prometheus::Result<Self> {
        IntGaugeVec::new(spec.opts(), spec.labels)
    }
}

impl Metric for HistogramVec {
    fn make(spec: &Spec) -> prometheus::Result<Self> {
        HistogramVec::new(spec.histogram_opts(), spec.labels)
    }
}

/// Makes and registers one metric. The rows are constants of this file, and a
/// test renders them all, so neither step can fail in a released binary.
fn register<M: Metric>(spec: &Spec) -> M {
    let metric = M::make(spec).expect("the table's names and labels are valid");
    REGISTRY
        .register(Box::new(metric.clone()))
        .expect("each name of the table stands there once");
    metric
}

/// Turns the table into one static per row, and into the list that makes sure
/// that a row exists in the first scrape even if nobody has touched it yet.
macro_rules! metrics {
    ($($name:ident: $kind:ty = $spec:expr;)*) => {
        $(
            #[doc = concat!("`", stringify!($kind), "`; what it counts is its help text in the table.")]
            pub static $name: LazyLock<$kind> = LazyLock::new(|| register(&$spec));
        )*

        fn register_all() {
            $(LazyLock::force(&$name);)*
        }

        #[cfg(test)]
        const TABLE: &[(&str, &str, Spec)] =
            &[$((stringify!($name), stringify!($kind), $spec)),*];
    };
}

metrics! {
    // Consensus
    SERVER_HAS_LEADER: IntGauge =
        metric("etcd_server_has_leader", "1 while this member knows a leader, else 0.");
    SERVER_IS_LEADER: IntGauge =
        metric("etcd_server_is_leader", "1 while this member is the leader, else 0.");
    SERVER_IS_LEARNER: IntGauge =
        metric("etcd_server_is_learner", "1 while this member is a learner, else 0.");
    SERVER_LEADER_CHANGES_SEEN_TOTAL: IntCounter = metric(
        "etcd_server_leader_changes_seen_total",
        "Leader changes this member has seen since its start.",
    );
    SERVER_PROPOSALS_PENDING: IntGauge =
        metric("etcd_server_proposals_pending", "Proposals that wait to be committed.");
    SERVER_PROPOSALS_FAILED_TOTAL: IntCounter =
        metric("etcd_server_proposals_failed_total", "Proposals that failed.");
    SERVER_PROPOSALS_COMMITTED_TOTAL: IntGauge =
        metric("etcd_server_proposals_committed_total", "Index of the last committed entry.");
    SERVER_PROPOSALS_APPLIED_TOTAL: IntGauge =
        metric("etcd_server_proposals_applied_total", "Index of the last applied entry.");
    SERVER_HEARTBEAT_SEND_FAILURES_TOTAL: IntCounter =
        metric("etcd_server_heartbeat_send_failures_total", "Heartbeats the leader sent too late.");
    SERVER_SLOW_READ_INDEXES_TOTAL: IntCounter =
        metric("etcd_server_slow_read_indexes_total", "Read barriers that waited too long.");
    SERVER_READ_INDEXES_FAILED_TOTAL: IntCounter =
        metric("etcd_server_read_indexes_failed_total", "Read barriers that failed.");
    SERVER_SNAPSHOT_APPLY_IN_PROGRESS_TOTAL: IntGauge = metric(
        "etcd_server_snapshot_apply_in_progress_total",
        "1 while a received snapshot is being applied.",
    );

    // Applying commands
    SERVER_SLOW_APPLY_TOTAL: IntCounter = metric(
        "etcd_server_slow_apply_total",
        "Commands that took longer to apply than warning-apply-duration.",
    );
    SERVER_APPLY_DURATION_SECONDS: HistogramVec = metric(
        "etcd_server_apply_duration_seconds",
        "Time it took to apply a command.",
    )
    .by(&["version", "op", "success"])
    .exponential(0.0001, 2.0, 20);
    SERVER_RANGE_DURATION_SECONDS: HistogramVec = metric(
        "etcd_server_range_duration_seconds",
        "Time it took to execute a read.",
    )
    .by(&["success"])
    .exponential(0.0001, 2.0, 20);
    SERVER_REQUEST_DURATION_SECONDS: HistogramVec = metric(
        "etcd_server_request_duration_seconds",
        "Time a request took from its arrival in the server to its answer.",
    )
    .by(&["type", "success"])
    .exponential(0.001, 2.0, 14);
    DEBUGGING_SERVER_ALARMS: IntGaugeVec = metric(
        "etcd_debugging_server_alarms",
        "1 for each alarm that is on.",
    ).by(&["server_id", "alarm_type"]);

    // The log and the store on disk
    DISK_WAL_FSYNC_DURATION_SECONDS: Histogram = metric(
        "etcd_disk_wal_fsync_duration_seconds",
        "Time of one synced append to the log.",
    ).exponential(0.001, 2.0, 14);
    DISK_WAL_WRITE_DURATION_SECONDS: Histogram = metric(
        "etcd_disk_wal_write_duration_seconds",
        "Time of one write to the log.",
    ).exponential(0.001, 2.0, 14);
    DISK_WAL_WRITE_BYTES_TOTAL: IntGauge =
        metric("etcd_disk_wal_write_bytes_total", "Bytes written to the log.");
    DISK_BACKEND_COMMIT_DURATION_SECONDS: Histogram = metric(
        "etcd_disk_backend_commit_duration_seconds",
        "Time of one write of a batch of applied commands to the store.",
    ).exponential(0.001, 2.0, 14);
    DISK_BACKEND_DEFRAG_DURATION_SECONDS: Histogram = metric(
        "etcd_disk_backend_defrag_duration_seconds",
        "Time of one defragmentation.",
    ).exponential(0.1, 2.0, 13);
    DISK_BACKEND_SNAPSHOT_DURATION_SECONDS: Histogram = metric(
        "etcd_disk_backend_snapshot_duration_seconds",
        "Time it took to stream a snapshot of the store.",
    ).exponential(0.01, 2.0, 17);
    DISK_DEFRAG_INFLIGHT: IntGauge =
        metric("etcd_disk_defrag_inflight", "1 while a defragmentation runs.");
    MVCC_DB_TOTAL_SIZE_IN_BYTES: IntGauge =
        metric("etcd_mvcc_db_total_size_in_bytes", "Bytes the store takes on disk.");
    MVCC_DB_TOTAL_SIZE_IN_USE_IN_BYTES: IntGauge = metric(
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "Bytes of the store that hold live data.",
    );
    SERVER_QUOTA_BACKEND_BYTES: IntGauge = metric(
        "etcd_server_quota_backend_bytes",
        "Quota in force for the size of the store, in bytes.",
    );

    // Keys and revisions
    MVCC_RANGE_TOTAL: IntCounter = metric("etcd_mvcc_range_total", "Ranges executed.");
    MVCC_PUT_TOTAL: IntCounter = metric("etcd_mvcc_put_total", "Puts executed.");
    MVCC_DELETE_TOTAL: IntCounter = metric("etcd_mvcc_delete_total", "Deletes executed.");
    MVCC_TXN_TOTAL: IntCounter =
        metric("etcd_mvcc_txn_total", "Transactions of several operations executed.");
    MVCC_DB_OPEN_READ_TRANSACTIONS: IntGauge = metric(
        "etcd_mvcc_db_open_read_transactions",
        "Consistent views of the store that are open.",
    );
    MVCC_HASH_DURATION_SECONDS: Histogram = metric(
        "etcd_mvcc_hash_duration_seconds",
        "Time of one hash over the whole store.",
    ).exponential(0.01, 2.0, 15);
    MVCC_HASH_REV_DURATION_SECONDS: Histogram = metric(
        "etcd_mvcc_hash_rev_duration_seconds",
        "Time of one hash over the keys up to a revision.",
    ).exponential(0.01, 2.0, 15);
    DEBUGGING_MVCC_KEYS_TOTAL: IntGauge = metric("etcd_debugging_mvcc_keys_total", "Live keys.");
    DEBUGGING_MVCC_TOTAL_PUT_SIZE_IN_BYTES: IntGauge = metric(
        "etcd_debugging_mvcc_total_put_size_in_bytes",
        "Bytes of the keys and values of all puts so far.",
    );
    DEBUGGING_MVCC_CURRENT_REVISION: IntGauge =
        metric("etcd_debugging_mvcc_current_revision", "Current revision of the store.");
    DEBUGGING_MVCC_COMPACT_REVISION: IntGauge =
        metric("etcd_debugging_mvcc_compact_revision", "Revision of the last compaction.");

    // Compaction
    DEBUGGING_MVCC_DB_COMPACTION_KEYS_TOTAL: IntCounter =
        metric("etcd_debugging_mvcc_db_compaction_keys_total", "Rows removed by compactions.");
    DEBUGGING_MVCC_DB_COMPACTION_LAST: IntGauge = metric(
        "etcd_debugging_mvcc_db_compaction_last",
        "Unix time of the last finished compaction, 0 when there was none since the start.",
    );
    DEBUGGING_MVCC_DB_COMPACTION_PAUSE_DURATION_MILLISECONDS: Histogram = metric(
        "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
        "Time of one step of a compaction.",
    ).exponential(1.0, 2.0, 13);
    DEBUGGING_MVCC_DB_COMPACTION_TOTAL_DURATION_MILLISECONDS: Histogram = metric(
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
        "Time of a whole compaction.",
    ).exponential(100.0, 2.0, 14);
    DEBUGGING_MVCC_INDEX_COMPACTION_PAUSE_DURATION_MILLISECONDS: Histogram = metric(
        "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
        "Time a compaction kept the apply thread from other work.",
    ).exponential(0.5, 2.0, 14);

    // Watch
    DEBUGGING_MVCC_WATCH_STREAM_TOTAL: IntGauge =
        metric("etcd_debugging_mvcc_watch_stream_total", "Open watch streams.");
    DEBUGGING_MVCC_WATCHER_TOTAL: IntGauge =
        metric("etcd_debugging_mvcc_watcher_total", "Watchers.");
    DEBUGGING_MVCC_SLOW_WATCHER_TOTAL: IntGauge =
        metric("etcd_debugging_mvcc_slow_watcher_total", "Watchers that are behind.");
    DEBUGGING_MVCC_EVENTS_TOTAL: IntCounter =
        metric("etcd_debugging_mvcc_events_total", "Events handed to watch streams.");
    DEBUGGING_MVCC_PENDING_EVENTS_TOTAL: IntGauge =
        metric("etcd_debugging_mvcc_pending_events_total", "Events that wait for slow streams.");
    DEBUGGING_SERVER_WATCH_SEND_LOOP_WATCH_STREAM_DURATION_SECONDS: Histogram = metric(
        "etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds",
        "Time it took to send one response with events.",
    ).exponential(0.001, 2.0, 14);
    DEBUGGING_SERVER_WATCH_SEND_LOOP_WATCH_STREAM_DURATION_PER_EVENT_SECONDS: Histogram = metric(
        "etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds",
        "The same, divided by the number of its events.",
    ).exponential(0.001, 2.0, 14);
    DEBUGGING_SERVER_WATCH_SEND_LOOP_CONTROL_STREAM_DURATION_SECONDS: Histogram = metric(
        "etcd_debugging_server_watch_send_loop_control_stream_duration_seconds",
        "Time it took to send one answer to a create or cancel.",
    ).exponential(0.001, 2.0, 14);
    DEBUGGING_SERVER_WATCH_SEND_LOOP_PROGRESS_DURATION_SECONDS: Histogram = metric(
        "etcd_debugging_server_watch_send_loop_progress_duration_seconds",
        "Time it took to send one progress notification.",
    ).exponential(0.001, 2.0, 14);

    // Lease
    DEBUGGING_LEASE_GRANTED_TOTAL: IntCounter =
        metric("etcd_debugging_lease_granted_total", "Leases granted.");
    DEBUGGING_LEASE_REVOKED_TOTAL: IntCounter =
        metric("etcd_debugging_lease_revoked_total", "Leases revoked.");
    DEBUGGING_LEASE_RENEWED_TOTAL: IntCounter =
        metric("etcd_debugging_lease_renewed_total", "Renewals seen by the leader.");
    DEBUGGING_LEASE_TTL_TOTAL: Histogram = metric(
        "etcd_debugging_lease_ttl_total",
        "Times to live of granted leases, in seconds.",
    ).exponential(1.0, 2.0, 24);
    DEBUGGING_SERVER_LEASE_EXPIRED_TOTAL: IntCounter =
        metric("etcd_debugging_server_lease_expired_total", "Leases that ran out.");

    // gRPC
    GRPC_SERVER_STARTED_TOTAL: IntCounterVec = metric(
        "grpc_server_started_total",
        "Calls started.",
    ).by(&["grpc_type", "grpc_service", "grpc_method"]);
    GRPC_SERVER_HANDLED_TOTAL: IntCounterVec = metric(
        "grpc_server_handled_total",
        "Calls finished, whatever their outcome.",
    ).by(&["grpc_type", "grpc_service", "grpc_method", "grpc_code"]);
    GRPC_SERVER_HANDLING_SECONDS: HistogramVec = metric(
        "grpc_server_handling_seconds",
        "Time from the start of a call to its end; only with --metrics=extensive.",
    )
    .by(&["grpc_type", "grpc_service", "grpc_method"])
    .bounds(&[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]);
    GRPC_SERVER_MSG_RECEIVED_TOTAL: IntCounterVec = metric(
        "grpc_server_msg_received_total",
        "Messages received from clients.",
    ).by(&["grpc_type", "grpc_service", "grpc_method"]);
    GRPC_SERVER_MSG_SENT_TOTAL: IntCounterVec = metric(
        "grpc_server_msg_sent_total",
        "Messages sent to clients.",
    ).by(&["grpc_type", "grpc_service", "grpc_method"]);
    NETWORK_CLIENT_GRPC_RECEIVED_BYTES_TOTAL: IntCounter = metric(
        "etcd_network_client_grpc_received_bytes_total",
        "Bytes of requests received from clients.",
    );
    NETWORK_CLIENT_GRPC_SENT_BYTES_TOTAL: IntCounter =
        metric("etcd_network_client_grpc_sent_bytes_total", "Bytes of responses sent to clients.");
    NETWORK_SERVER_STREAM_FAILURES_TOTAL: IntCounterVec = metric(
        "etcd_network_server_stream_failures_total",
        "Failed sends and receives on clients' streams.",
    ).by(&["Type", "API"]);
    SERVER_CLIENT_REQUESTS_TOTAL: IntCounterVec = metric(
        "etcd_server_client_requests_total",
        "Requests by kind and by the API version the client says it speaks.",
    ).by(&["type", "client_api_version"]);

    // The whole state between members
    NETWORK_SNAPSHOT_SEND_SUCCESS: IntCounterVec = metric(
        "etcd_network_snapshot_send_success",
        "Times the state was sent to a member.",
    ).by(&["To"]);
    NETWORK_SNAPSHOT_SEND_INFLIGHTS_TOTAL: IntGaugeVec = metric(
        "etcd_network_snapshot_send_inflights_total",
        "Members that are being sent the state.",
    ).by(&["To"]);
    NETWORK_SNAPSHOT_SEND_FAILURES: IntCounterVec = metric(
        "etcd_network_snapshot_send_failures",
        "Times sending the state to a member failed.",
    ).by(&["To"]);
    NETWORK_SNAPSHOT_SEND_TOTAL_DURATION_SECONDS: HistogramVec = metric(
        "etcd_network_snapshot_send_total_duration_seconds",
        "Time it took to send the state to a member.",
    ).by(&["To"]).exponential(0.1, 2.0, 10);
    NETWORK_SNAPSHOT_RECEIVE_SUCCESS: IntCounterVec = metric(
        "etcd_network_snapshot_receive_success",
        "Times the state of a member was received.",
    ).by(&["From"]);
    NETWORK_SNAPSHOT_RECEIVE_INFLIGHTS_TOTAL: IntGaugeVec = metric(
        "etcd_network_snapshot_receive_inflights_total",
        "Members whose state is being received.",
    ).by(&["From"]);
    NETWORK_SNAPSHOT_RECEIVE_FAILURES: IntCounterVec = metric(
        "etcd_network_snapshot_receive_failures",
        "Times receiving the state of a member failed.",
    ).by(&["From"]);
    NETWORK_SNAPSHOT_RECEIVE_TOTAL_DURATION_SECONDS: HistogramVec = metric(
        "etcd_network_snapshot_receive_total_duration_seconds",
        "Time it took to receive the state of a member.",
    ).by(&["From"]).exponential(0.1, 2.0, 10);
    DEBUGGING_SNAP_SAVE_TOTAL_DURATION_SECONDS: Histogram = metric(
        "etcd_debugging_snap_save_total_duration_seconds",
        "Time it took to make a checkpoint of the state.",
    ).exponential(0.001, 2.0, 14);
    DEBUGGING_SNAP_SAVE_MARSHALLING_DURATION_SECONDS: Histogram = metric(
        "etcd_debugging_snap_save_marshalling_duration_seconds",
        "Always without samples: a checkpoint is not encoded.",
    ).exponential(0.001, 2.0, 14);
    SNAP_FSYNC_DURATION_SECONDS: Histogram = metric(
        "etcd_snap_fsync_duration_seconds",
        "Time of the sync of one file of a received state.",
    ).exponential(0.001, 2.0, 14);
    SNAP_DB_SAVE_TOTAL_DURATION_SECONDS: Histogram = metric(
        "etcd_snap_db_save_total_duration_seconds",
        "Time from the first to the last byte of a received state.",
    ).exponential(0.1, 2.0, 10);
    SNAP_DB_FSYNC_DURATION_SECONDS: Histogram = metric(
        "etcd_snap_db_fsync_duration_seconds",
        "Time of the last sync of a received state.",
    ).exponential(0.001, 2.0, 14);

    // Peers
    NETWORK_ACTIVE_PEERS: IntGaugeVec =
        metric("etcd_network_active_peers", "Live connections to peers.").by(&["Local", "Remote"]);
    NETWORK_KNOWN_PEERS: IntGaugeVec = metric(
        "etcd_network_known_peers",
        "1 for each peer this member knows.",
    ).by(&["Local", "Remote"]);
    NETWORK_DISCONNECTED_PEERS_TOTAL: IntCounterVec = metric(
        "etcd_network_disconnected_peers_total",
        "Connections to peers that were lost.",
    ).by(&["Local", "Remote"]);
    NETWORK_PEER_SENT_BYTES_TOTAL: IntCounterVec =
        metric("etcd_network_peer_sent_bytes_total", "Bytes sent to a peer.").by(&["To"]);
    NETWORK_PEER_RECEIVED_BYTES_TOTAL: IntCounterVec = metric(
        "etcd_network_peer_received_bytes_total",
        "Bytes received from a peer.",
    ).by(&["From"]);
    NETWORK_PEER_SENT_FAILURES_TOTAL: IntCounterVec =
        metric("etcd_network_peer_sent_failures_total", "Failed sends to a peer.").by(&["To"]);
    NETWORK_PEER_RECEIVED_FAILURES_TOTAL: IntCounterVec = metric(
        "etcd_network_peer_received_failures_total",
        "Failed receives from a peer.",
    ).by(&["From"]);
    NETWORK_PEER_ROUND_TRIP_TIME_SECONDS: HistogramVec = metric(
        "etcd_network_peer_round_trip_time_seconds",
        "Round trip time to a peer.",
    )
    .by(&["To"])
    .exponential(0.0001, 2.0, 16);

    // Health, identity, process
    SERVER_HEALTH_SUCCESS: IntCounter =
        metric("etcd_server_health_success", "Answers of /health that said healthy.");
    SERVER_HEALTH_FAILURES: IntCounter =
        metric("etcd_server_health_failures", "Answers of /health that said unhealthy.");
    SERVER_HEALTHCHECK: IntGaugeVec = metric(
        "etcd_server_healthcheck",
        "Last result of a check of /livez or /readyz, 1 is good.",
    ).by(&["type", "name"]);
    SERVER_HEALTHCHECKS_TOTAL: IntCounterVec = metric(
        "etcd_server_healthchecks_total",
        "Runs of a check of /livez or /readyz by result.",
    ).by(&["type", "name", "status"]);
    SERVER_VERSION: IntGaugeVec = metric(
        "etcd_server_version",
        "Always 1; the label is the version of the API that is served.",
    ).by(&["server_version"]);
    SERVER_ID: IntGaugeVec = metric(
        "etcd_server_id",
        "Always 1; the label is this member's id in hexadecimal.",
    ).by(&["server_id"]);
    CLUSTER_VERSION: IntGaugeVec = metric(
        "etcd_cluster_version",
        "1 for the version the cluster works at.",
    ).by(&["cluster_version"]);
    SERVER_FEATURE_ENABLED: IntGaugeVec = metric(
        "etcd_server_feature_enabled",
        "1 for each feature gate that is on, 0 for the others.",
    ).by(&["name", "stage"]);
    OS_FD_USED: IntGauge = metric("os_fd_used", "File descriptors in use.");
    OS_FD_LIMIT: IntGauge = metric("os_fd_limit", "Limit on file descriptors.");
    PROMHTTP_METRIC_HANDLER_REQUESTS_TOTAL: IntCounterVec = metric(
        "promhttp_metric_handler_requests_total",
        "Scrapes answered, by HTTP status.",
    ).by(&["code"]);
}

/// The `process_*` family, read from /proc at each scrape.
static PROCESS: LazyLock<()> = LazyLock::new(|| {
    REGISTRY
        .register(Box::new(ProcessCollector::for_self()))
        .expect("no row of the table begins with process_");
});

/// Fills the metrics that only say who this member is: the version of the API
/// it serves (`3.7.3`) and the cluster's (`3.7`), and its id.
pub fn set_identity(server_version: &str, cluster_version: &str, member_id: u64) {
    SERVER_VERSION.with_label_values(&[server_version]).set(1);
    CLUSTER_VERSION.with_label_values(&[cluster_version]).set(1);
    SERVER_ID
        .with_label_values(&[format!("{member_id:x}").as_str()])
        .set(1);
}

/// Says whether the metrics of `--metrics=extensive` are wanted; they cost a
/// histogram observation per call and a dozen series per method.
pub fn set_extensive(is_extensive: bool) {
    IS_EXTENSIVE.store(is_extensive, Ordering::Relaxed);
}

/// Whether `grpc_server_handling_seconds` is to be fed.
pub fn is_extensive() -> bool {
    IS_EXTENSIVE.load(Ordering::Relaxed)
}

/// All metrics in Prometheus's text format (see [`CONTENT_TYPE`]).
pub fn render() -> String {
    register_all();
    LazyLock::force(&PROCESS);
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        OS_FD_USED.set(entries.count() as i64);
    }
    let families = REGISTRY.gather();
    let mut text = String::with_capacity(64 << 10);
    // Encoding fails only for a family without a name or without samples, and
    // the registry leaves the latter out.
    if let Err(error) = TextEncoder::new().encode_utf8(&families, &mut text) {
        tracing::error!(%error, "failed to encode the metrics");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    struct EtcdRow {
        group: &'static str,
        name: &'static str,
        kind: &'static str,
        labels: Vec<&'static str>,
        buckets: &'static str,
    }

    fn etcd_rows() -> impl Iterator<Item = EtcdRow> {
        let lines = include_str!("../tests/data/metrics.tsv").lines();
        lines
            .skip_while(|line| !line.starts_with("group\t"))
            .skip(1)
            .map(|line| {
                let cells: Vec<&str> = line.split('\t').collect();
                EtcdRow {
                    group: cells[0],
                    name: cells[1],
                    kind: cells[2],
                    labels: cells[3]
                        .split(',')
                        .filter(|label| !label.is_empty())
                        .collect(),
                    buckets: cells[4],
                }
            })
    }

    #[test]
    fn dashboards_find_every_metric_they_use() {
        for row in etcd_rows().filter(|row| row.group.starts_with(['1', '2'])) {
            // The scraper makes `up`, prometheus's own collector the others.
            if row.name == "up" || row.name.starts_with("process_") {
                continue;
            }
            assert!(
                TABLE.iter().any(|(.., spec)| spec.name == row.name),
                "{} is missing",
                row.name
            );
        }
    }

    #[test]
    fn rows_agree_with_etcd() {
        for (name, kind, spec) in TABLE {
            let row = etcd_rows()
                .find(|row| row.name == spec.name)
                .unwrap_or_else(|| panic!("{} is not a metric of etcd", spec.name));
            let expected_name = row
                .name
                .strip_prefix("etcd_")
                .unwrap_or(row.name)
                .to_uppercase();
            assert_eq!(*name, expected_name);
            assert_eq!(spec.labels, row.labels, "labels of {name}");
            let expected_kind = match (row.kind, row.labels.is_empty()) {
                ("counter", true) => "IntCounter",
                ("counter", false) => "IntCounterVec",
                ("gauge", true) => "IntGauge",
                ("gauge", false) => "IntGaugeVec",
                ("histogram", true) => "Histogram",
                ("histogram", false) => "HistogramVec",
                (kind, _) => panic!("{kind} of {name}"),
            };
            assert_eq!(*kind, expected_kind, "kind of {name}");
            match (
                &spec.buckets,
                row.buckets.strip_prefix("ExponentialBuckets("),
            ) {
                (Buckets::None, None) => assert!(row.buckets.is_empty(), "buckets of {name}"),
                (Buckets::Exponential(start, factor, count), Some(text)) => {
                    let numbers = text.trim_end_matches(')').split(',');
                    let numbers: Vec<f64> = numbers
                        .map(|number| number.trim().parse().unwrap())
                        .collect();
                    assert_eq!(
                        [*start, *factor, *count as f64],
                        *numbers,
                        "buckets of {name}"
                    );
                }
                (Buckets::Bounds(bounds), None) => {
                    let numbers = row.buckets.split(',');
                    let numbers: Vec<f64> = numbers.map(|number| number.parse().unwrap()).collect();
                    assert_eq!(*bounds, numbers, "buckets of {name}");
                }
                _ => panic!("buckets of {name}"),
            }
        }
    }

    #[test]
    fn a_scrape_shows_untouched_metrics_as_zero() {
        set_identity("3.7.3", "3.7", 0x8e9e_05c5_2164_694d);
        let text = render();
        for line in [
            "# TYPE etcd_server_proposals_committed_total gauge",
            "etcd_debugging_snap_save_marshalling_duration_seconds_count 0",
            "etcd_disk_backend_defrag_duration_seconds_bucket{le=\"409.6\"} 0",
            "etcd_server_version{server_version=\"3.7.3\"} 1",
            "etcd_cluster_version{cluster_version=\"3.7\"} 1",
            "etcd_server_id{server_id=\"8e9e05c52164694d\"} 1",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no line {line:?} in\n{text}"
            );
        }
        assert!(text.contains("\nprocess_resident_memory_bytes "));
    }
}
