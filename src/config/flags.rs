//! The table of flags: names, kinds, defaults and what becomes of each.
//!
//! All options of an etcd server are here, because a drop-in must start with
//! whatever unit file, manifest or compose file it finds. The table is data:
//! the command line, the environment, the configuration file, the help text
//! and the warnings about options without effect are all driven by it. What
//! the values mean is in the parent module.

use super::value::Kind;
use super::value::Kind::*;
use Group::*;

/// One option, under all its names.
pub(super) struct Flag {
    /// Without dashes. The environment variable is derived from it.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// As it would stand on a command line.
    pub(super) default: &'static str,
    pub(super) group: Group,
    pub(super) fate: Fate,
    /// Keys from the top of the configuration file, separated by slashes;
    /// empty if the file cannot hold this option.
    pub(super) file_key: &'static str,
    pub(super) help: &'static str,
}

/// Headings of the help text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    Member,
    Clustering,
    Security,
    Auth,
    Monitoring,
    Logging,
    Tracing,
    Features,
    Unsafe,
    Stele,
    /// Names that releases of etcd have dropped. Not in the help text.
    Old,
}

impl Group {
    /// In the order of the help text.
    pub(super) const SHOWN: [(Group, &str); 10] = [
        (Member, "Member"),
        (Clustering, "Clustering"),
        (Security, "Security"),
        (Auth, "Auth"),
        (Monitoring, "Profiling and monitoring"),
        (Logging, "Logging"),
        (Tracing, "Distributed tracing"),
        (Features, "Features"),
        (Unsafe, "Unsafe"),
        (Stele, "Only in stele"),
    ];
}

/// What becomes of an option that is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Works,
    /// Its feature does not exist yet: named in a warning.
    Later,
    /// It tunes a part of etcd that has no counterpart here: named in a warning.
    Tuning,
    /// Going on without it would be a surprise, so the start is refused.
    Refused(&'static str),
    /// An older name of another flag.
    RenamedTo(&'static str),
    /// An older name of a feature gate.
    Gate(&'static str),
    /// Means nothing since long ago: named in a warning.
    Dropped,
}

/// A row with the usual values: works, stands under its name in the file.
const fn flag(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    group: Group,
    help: &'static str,
) -> Flag {
    Flag {
        name,
        kind,
        default,
        group,
        fate: Fate::Works,
        file_key: name,
        help,
    }
}

/// The older name of `new`, which has the same kind.
const fn renamed(name: &'static str, kind: Kind, new: &'static str) -> Flag {
    flag(name, kind, "", Old, "").fate(Fate::RenamedTo(new))
}

/// The older name of the feature gate `gate`.
const fn gate(name: &'static str, gate: &'static str) -> Flag {
    flag(name, Bool, "false", Old, "").fate(Fate::Gate(gate))
}

/// Given up by etcd before its release 2.0, still parsed, as a bare switch.
const fn dropped(name: &'static str) -> Flag {
    flag(name, Switch, "", Old, "").fate(Fate::Dropped).file("")
}

impl Flag {
    const fn fate(mut self, fate: Fate) -> Flag {
        self.fate = fate;
        self
    }

    const fn later(self) -> Flag {
        self.fate(Fate::Later)
    }

    const fn tuning(self) -> Flag {
        self.fate(Fate::Tuning)
    }

    const fn refused(self, why: &'static str) -> Flag {
        self.fate(Fate::Refused(why))
    }

    const fn file(mut self, key: &'static str) -> Flag {
        self.file_key = key;
        self
    }

    /// The environment variable that fills this flag.
    pub(super) fn variable(&self) -> String {
        format!(
            "{VARIABLE_PREFIX}{}",
            self.name.to_uppercase().replace('-', "_")
        )
    }
}

/// What the environment variables of all flags begin with.
pub(super) const VARIABLE_PREFIX: &str = "ETCD_";

/// The flag of this name.
pub(super) fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

const DISCOVERY_LATER: &str = "finding the members by discovery comes in a later release of stele; name them in --initial-cluster";

// One row, one line: as a table it can be read, folded it cannot.
#[rustfmt::skip]
pub(super) const FLAGS: &[Flag] = &[
    // Member
    flag("name", Text, "default", Member, "Name of this member."),
    flag("data-dir", Text, "", Member, "Directory of all durable state (default ${name}.stele; etcd's default is ${name}.etcd, and its directories are never touched)."),
    flag("wal-dir", Text, "", Member, "Directory of the log, when not in the data directory."),
    flag("snapshot-count", Uint, "10000", Member, "Applied entries between two shortenings of the log."),
    flag("heartbeat-interval", Uint, "100", Member, "Time between two heartbeats of the leader, in milliseconds."),
    flag("election-timeout", Uint, "1000", Member, "Time without heartbeats after which a member stands for election, in milliseconds."),
    flag("initial-election-tick-advance", Bool, "true", Member, "Hold the first election early."),
    flag("listen-peer-urls", Urls, "http://localhost:2380", Member, "URLs to accept peers on."),
    flag("listen-client-urls", Urls, "http://localhost:2379", Member, "URLs to accept clients on, gRPC and HTTP alike."),
    flag("listen-client-http-urls", Urls, "", Member, "URLs to accept HTTP clients on; then those of --listen-client-urls speak gRPC only."),
    flag("max-snapshots", Uint, "5", Member, "Snapshot files to keep.").tuning(),
    flag("max-wals", Uint, "5", Member, "Log files to keep.").tuning(),
    flag("quota-backend-bytes", Int, "0", Member, "Size of the store above which writes are refused (0: 2 GiB, below 0: no limit)."),
    flag("backend-bbolt-freelist-type", Text, "map", Member, "Kind of free list of bbolt.").tuning(),
    flag("backend-batch-interval", Duration, "0s", Member, "Longest time before the store commits.").tuning(),
    flag("backend-batch-limit", Int, "0", Member, "Most operations before the store commits.").tuning(),
    flag("max-txn-ops", Uint, "128", Member, "Most operations in a transaction."),
    flag("max-request-bytes", Uint, "1572864", Member, "Largest write request, in bytes."),
    flag("max-concurrent-streams", Uint32, "4294967295", Member, "Most concurrent streams of one client connection."),
    flag("grpc-keepalive-min-time", Duration, "5s", Member, "Shortest time between two pings of a client."),
    flag("grpc-keepalive-interval", Duration, "2h", Member, "Time without traffic after which a client is pinged (0: never)."),
    flag("grpc-keepalive-timeout", Duration, "20s", Member, "Time to wait for the answer to a ping."),
    flag("socket-reuse-port", Bool, "false", Member, "Set SO_REUSEPORT on listeners.").file("socket-options/reuse-port"),
    flag("socket-reuse-address", Bool, "false", Member, "Set SO_REUSEADDR on listeners (it always is).").file("socket-options/reuse-address"),
    flag("memory-mlock", Bool, "false", Member, "Keep the process's memory from being swapped out.").later(),

    // Clustering
    flag("initial-advertise-peer-urls", Urls, "http://localhost:2380", Clustering, "Peer URLs of this member that others are told."),
    flag("initial-cluster", Text, "", Clustering, "Members to bootstrap with, as name=url,... (default ${name}=${initial-advertise-peer-urls})."),
    flag("initial-cluster-state", Choice(&["new", "existing"]), "new", Clustering, "Bootstrap a new cluster, or join an existing one."),
    flag("initial-cluster-token", Text, "etcd-cluster", Clustering, "Text that makes this cluster's ids unlike another's."),
    flag("advertise-client-urls", Urls, "http://localhost:2379", Clustering, "Client URLs of this member that clients are told."),
    flag("discovery-srv", Text, "", Clustering, "DNS domain to find the members by.").refused(DISCOVERY_LATER),
    flag("discovery-srv-name", Text, "", Clustering, "Suffix of the service name to look up.").later(),
    flag("discovery-endpoints", List, "", Clustering, "Endpoints of a discovery service.").refused(DISCOVERY_LATER).file("discovery-config/client/endpoints"),
    flag("discovery-token", Text, "", Clustering, "Token at the discovery service.").later().file("discovery-config/token"),
    flag("discovery-dial-timeout", Duration, "2s", Clustering, "").later().file("discovery-config/client/dial-timeout"),
    flag("discovery-request-timeout", Duration, "5s", Clustering, "").later().file("discovery-config/client/request-timeout"),
    flag("discovery-keepalive-time", Duration, "2s", Clustering, "").later().file("discovery-config/client/keepalive-time"),
    flag("discovery-keepalive-timeout", Duration, "6s", Clustering, "").later().file("discovery-config/client/keepalive-timeout"),
    flag("discovery-insecure-transport", Bool, "true", Clustering, "").later().file("discovery-config/client/secure/insecure-transport"),
    flag("discovery-insecure-skip-tls-verify", Bool, "false", Clustering, "").later().file("discovery-config/client/secure/insecure-skip-tls-verify"),
    flag("discovery-cert", Text, "", Clustering, "").later().file("discovery-config/client/secure/cert"),
    flag("discovery-key", Text, "", Clustering, "").later().file("discovery-config/client/secure/key"),
    flag("discovery-cacert", Text, "", Clustering, "").later().file("discovery-config/client/secure/cacert"),
    flag("discovery-user", Text, "", Clustering, "").later().file("discovery-config/client/auth/username"),
    flag("discovery-password", Text, "", Clustering, "").later().file("discovery-config/client/auth/password"),
    flag("discovery-fallback", Choice(&["exit"]), "exit", Clustering, "What to do when discovery fails.").file(""),
    flag("strict-reconfig-check", Bool, "true", Clustering, "Refuse changes of membership that would lose the quorum."),
    flag("pre-vote", Bool, "true", Clustering, "Ask before standing for election."),
    flag("max-learners", Int, "1", Clustering, "Most learners at a time."),
    flag("raft-read-timeout", Duration, "5s", Clustering, "Time to wait for a peer's bytes.").tuning().file(""),
    flag("raft-write-timeout", Duration, "5s", Clustering, "Time to wait until a peer takes bytes.").tuning().file(""),
    flag("snapshot-catchup-entries", Uint, "5000", Clustering, "Entries kept for slow followers when the log is shortened."),
    flag("corrupt-check-time", Duration, "0s", Clustering, "Time between two comparisons of the members' data (0: never)."),
    flag("compact-hash-check-time", Duration, "1m", Clustering, "Time between two comparisons of the hashes of compactions.").later(),
    flag("downgrade-check-time", Duration, "5s", Clustering, "Time between two looks for a downgrade.").later(),
    flag("auto-compaction-mode", Text, "periodic", Clustering, "What --auto-compaction-retention counts: time or revisions."),
    flag("auto-compaction-retention", Text, "0", Clustering, "History to keep: a duration, a number of hours, or a number of revisions (0: everything)."),
    flag("v2-deprecation", Text, "write-only-drop-data", Clustering, "Phase of the end of etcd's v2 store.").tuning(),

    // Security
    flag("cert-file", Text, "", Security, "Certificate of the client port.").file("client-transport-security/cert-file"),
    flag("key-file", Text, "", Security, "Key of --cert-file.").file("client-transport-security/key-file"),
    flag("client-cert-file", Text, "", Security, "Certificate etcd uses to dial its own port.").tuning().file("client-transport-security/client-cert-file"),
    flag("client-key-file", Text, "", Security, "Key of --client-cert-file.").tuning().file("client-transport-security/client-key-file"),
    flag("client-cert-auth", Bool, "false", Security, "Demand certificates from clients.").file("client-transport-security/client-cert-auth"),
    flag("client-crl-file", Text, "", Security, "Revoked certificates of clients, in DER or PEM.").file(""),
    flag("client-cert-allowed-hostname", List, "", Security, "Names of which a client's certificate must have one.").file("client-transport-security/allowed-hostname"),
    flag("trusted-ca-file", Text, "", Security, "Certificate authorities of clients; giving it also demands certificates.").file("client-transport-security/trusted-ca-file"),
    flag("auto-tls", Bool, "false", Security, "Make a certificate for the client port, in <data-dir>/fixtures/client.").file("client-transport-security/auto-tls"),
    flag("peer-cert-file", Text, "", Security, "Certificate of the peer port.").file("peer-transport-security/cert-file"),
    flag("peer-key-file", Text, "", Security, "Key of --peer-cert-file.").file("peer-transport-security/key-file"),
    flag("peer-client-cert-file", Text, "", Security, "Certificate to dial peers with.").file("peer-transport-security/client-cert-file"),
    flag("peer-client-key-file", Text, "", Security, "Key of --peer-client-cert-file.").file("peer-transport-security/client-key-file"),
    flag("peer-client-cert-auth", Bool, "false", Security, "Demand certificates from peers.").file("peer-transport-security/client-cert-auth"),
    flag("peer-trusted-ca-file", Text, "", Security, "Certificate authorities of peers.").file("peer-transport-security/trusted-ca-file"),
    flag("peer-cert-allowed-cn", List, "", Security, "Common names of which a peer's certificate must have one.").file("peer-transport-security/allowed-cn"),
    flag("peer-cert-allowed-hostname", List, "", Security, "Names of which a peer's certificate must have one.").file("peer-transport-security/allowed-hostname"),
    flag("peer-auto-tls", Bool, "false", Security, "Make a certificate for the peer port, in <data-dir>/fixtures/peer, and trust any peer.").file("peer-transport-security/auto-tls"),
    flag("peer-crl-file", Text, "", Security, "Revoked certificates of peers, in DER or PEM.").file(""),
    flag("peer-skip-client-san-verification", Bool, "false", Security, "Do not compare a peer's address with its certificate.").file("peer-transport-security/skip-client-san-verification"),
    flag("self-signed-cert-validity", Uint, "1", Security, "Years a self-made certificate lasts."),
    flag("cipher-suites", List, "", Security, "Cipher suites of TLS 1.2 to offer."),
    flag("cors", List, "*", Security, "Origins whose pages may use the HTTP side."),
    flag("host-whitelist", List, "*", Security, "Host names plaintext HTTP requests may ask for."),
    flag("tls-min-version", Text, "TLS1.2", Security, "Lowest version of TLS."),
    flag("tls-max-version", Text, "", Security, "Highest version of TLS."),

    // Auth
    flag("auth-token", Text, "simple", Auth, "Kind of auth tokens and its options.").later(),
    flag("bcrypt-cost", Uint, "10", Auth, "Cost of hashing passwords.").later(),
    flag("auth-token-ttl", Uint, "300", Auth, "Seconds a simple token lasts.").later(),

    // Profiling and monitoring
    flag("enable-pprof", Bool, "false", Monitoring, "Serve /debug/pprof/.").later(),
    flag("metrics", Text, "basic", Monitoring, "How much to measure; extensive adds histograms of gRPC calls."),
    flag("listen-metrics-urls", Urls, "", Monitoring, "More URLs to serve /metrics and the health checks on."),

    // Logging
    flag("logger", Text, "zap", Logging, "Kind of logger; only zap's output format is known."),
    flag("log-outputs", List, "default", Logging, "Where to log: stdout, stderr, systemd/journal, default, or files."),
    flag("log-level", Text, "info", Logging, "Lowest level that is logged."),
    flag("log-format", Text, "json", Logging, "Format of log lines."),
    flag("enable-log-rotation", Bool, "false", Logging, "Begin a new log file from time to time.").later(),
    flag("log-rotation-config-json", Text, r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#, Logging, "When to begin a new log file.").later(),
    flag("warning-apply-duration", Duration, "100ms", Logging, "Time after which applying a command is slow."),
    flag("warning-unary-request-duration", Duration, "300ms", Logging, "Time after which a call is slow.").later(),

    // Distributed tracing
    flag("enable-distributed-tracing", Bool, "false", Tracing, "Export traces.").later(),
    flag("distributed-tracing-address", Text, "localhost:4317", Tracing, "Collector of traces.").later(),
    flag("distributed-tracing-service-name", Text, "etcd", Tracing, "Service name in traces.").later(),
    flag("distributed-tracing-instance-id", Text, "", Tracing, "Instance id in traces.").later(),
    flag("distributed-tracing-sampling-rate", Int, "0", Tracing, "Traces out of a million requests.").later(),

    // Features
    flag("config-file", Text, "", Features, "File with all options; other flags and variables are then ignored.").file(""),
    flag("enable-grpc-gateway", Bool, "true", Features, "Serve the JSON gateway under /v3/ (which comes later; until then it says so)."),
    flag("feature-gates", Text, "", Features, "Features to switch, as Name=true,..."),
    flag("watch-progress-notify-interval", Duration, "0s", Features, "Time between two progress notifications (0: 10m)."),
    flag("compaction-batch-limit", Int, "0", Features, "Revisions a compaction drops at a time.").tuning(),
    flag("compaction-sleep-interval", Duration, "0s", Features, "Pause between two batches of a compaction.").tuning(),
    flag("bootstrap-defrag-threshold-megabytes", Uint, "0", Features, "Megabytes to gain that make the start defragment.").tuning(),
    flag("version", Bool, "false", Features, "Print the version and exit.").file(""),
    flag("help", Bool, "false", Features, "Print this text and exit.").file(""),

    // Unsafe
    flag("force-new-cluster", Bool, "false", Unsafe, "Make a cluster of one from this member's data."),
    flag("unsafe-no-fsync", Bool, "false", Unsafe, "Do not sync the log. Loses acknowledged writes when the machine stops."),

    // Only in stele
    flag("stele-cache-bytes", Uint, "134217728", Stele, "Memory for the store's blocks and write buffers, in bytes. Recent events take up to a sixteenth of it beside; what connections need comes on top."),

    // Names that are gone from etcd 3.7, 3.6 or long before
    flag("discovery", Text, "", Old, "").refused(DISCOVERY_LATER),
    flag("discovery-proxy", Text, "", Old, "").later(),
    renamed("experimental-bootstrap-defrag-threshold-megabytes", Uint, "bootstrap-defrag-threshold-megabytes"),
    renamed("experimental-compact-hash-check-time", Duration, "compact-hash-check-time"),
    renamed("experimental-compaction-batch-limit", Int, "compaction-batch-limit"),
    renamed("experimental-compaction-sleep-interval", Duration, "compaction-sleep-interval"),
    renamed("experimental-corrupt-check-time", Duration, "corrupt-check-time"),
    renamed("experimental-distributed-tracing-address", Text, "distributed-tracing-address"),
    renamed("experimental-distributed-tracing-instance-id", Text, "distributed-tracing-instance-id"),
    renamed("experimental-distributed-tracing-sampling-rate", Int, "distributed-tracing-sampling-rate"),
    renamed("experimental-distributed-tracing-service-name", Text, "distributed-tracing-service-name"),
    renamed("experimental-downgrade-check-time", Duration, "downgrade-check-time"),
    renamed("experimental-enable-distributed-tracing", Bool, "enable-distributed-tracing"),
    renamed("experimental-memory-mlock", Bool, "memory-mlock"),
    renamed("experimental-peer-skip-client-san-verification", Bool, "peer-skip-client-san-verification"),
    renamed("experimental-snapshot-catchup-entries", Uint, "snapshot-catchup-entries").file("experimental-snapshot-catch-up-entries"),
    renamed("experimental-warning-apply-duration", Duration, "warning-apply-duration"),
    renamed("experimental-warning-unary-request-duration", Duration, "warning-unary-request-duration"),
    renamed("experimental-watch-progress-notify-interval", Duration, "watch-progress-notify-interval"),
    gate("experimental-compact-hash-check-enabled", "CompactHashCheck"),
    gate("experimental-enable-lease-checkpoint", "LeaseCheckpoint"),
    gate("experimental-enable-lease-checkpoint-persist", "LeaseCheckpointPersist"),
    gate("experimental-initial-corrupt-check", "InitialCorruptCheck"),
    gate("experimental-stop-grpc-service-on-defrag", "StopGRPCServiceOnDefrag"),
    gate("experimental-txn-mode-write-with-shared-buffer", "TxnModeWriteWithSharedBuffer"),
    dropped("cluster-active-size"),
    dropped("cluster-remove-delay"),
    dropped("cluster-sync-interval"),
    dropped("config"),
    dropped("force"),
    dropped("max-result-buffer"),
    dropped("max-retry-attempts"),
    dropped("peer-heartbeat-interval"),
    dropped("peer-election-timeout"),
    dropped("retry-interval"),
    dropped("snapshot"),
    dropped("v"),
    dropped("vv"),
    flag("enable-v2", Bool, "false", Old, "").fate(Fate::Dropped),
    flag("proxy", Text, "off", Old, "").fate(Fate::Dropped),
    flag("debug", Bool, "false", Old, "").fate(Fate::Dropped),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of etcd's list: flag, variable, file key, default.
    fn etcd_rows() -> impl Iterator<Item = Vec<&'static str>> {
        let lines = include_str!("../../tests/data/flags.tsv").lines();
        lines
            .skip_while(|line| !line.starts_with("flag\t"))
            .skip(1)
            .map(|l| l.split('\t').collect())
    }

    #[test]
    fn the_table_holds_all_options_of_etcd_and_their_names() {
        for row in etcd_rows() {
            let name = row[0].strip_prefix("--").unwrap();
            let flag = find(name).unwrap_or_else(|| panic!("--{name} is missing"));
            if row[1] != "(none)" {
                assert_eq!(flag.variable(), row[1]);
            }
            assert_eq!(flag.file_key, file_key(name, row[2]), "key of --{name}");
        }
        let ours = FLAGS.iter().filter(|flag| flag.group != Stele).count();
        assert_eq!(
            ours,
            etcd_rows().count(),
            "every other flag is one of etcd's"
        );
    }

    /// The list writes nested keys as `a: {b: {c}}`, with remarks in
    /// parentheses, and nothing where the key is the flag's name.
    fn file_key(name: &str, cell: &str) -> String {
        if cell == "(not in file)" {
            return String::new();
        }
        let cell = cell.split(" (").next().unwrap_or_default();
        let keys = cell.replace(": {", "/").replace('}', "");
        if keys.is_empty() {
            name.to_owned()
        } else {
            keys
        }
    }

    #[test]
    fn defaults_are_those_of_etcd() {
        for row in etcd_rows() {
            let name = row[0].strip_prefix("--").unwrap();
            // Empty ones, those that depend on others, and the one deviation.
            if row[4].contains(['(', '$']) || row[4].starts_with("as the") || row[4] == "-" {
                continue;
            }
            let flag = find(name).unwrap();
            if flag.kind == Duration {
                assert_eq!(
                    flag.kind.parse(flag.default),
                    flag.kind.parse(row[4]),
                    "--{name}"
                );
            } else if name != "initial-cluster" {
                assert_eq!(flag.default, row[4], "--{name}");
            }
        }
    }

    #[test]
    fn rows_are_sound() {
        for (position, flag) in FLAGS.iter().enumerate() {
            assert!(
                FLAGS[..position]
                    .iter()
                    .all(|other| other.name != flag.name),
                "{}",
                flag.name
            );
            if flag.fate == Fate::Dropped || !flag.default.is_empty() {
                assert!(
                    flag.kind == Switch || flag.kind.parse(flag.default).is_ok(),
                    "{}",
                    flag.name
                );
            }
            if let Fate::RenamedTo(new) = flag.fate {
                assert_eq!(find(new).unwrap().kind, flag.kind, "{}", flag.name);
            }
            if let Fate::Gate(gate) = flag.fate {
                assert!(
                    super::super::features::find(gate).is_some(),
                    "{}",
                    flag.name
                );
            }
            if flag.group != Old && flag.fate == Fate::Works {
                assert!(!flag.help.is_empty(), "{}", flag.name);
            }
        }
    }
}
