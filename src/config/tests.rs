//! Command lines, environments and files, and what they make of a [`Config`].

use std::io::Write as _;

use super::*;
use crate::http::tls::{SelfMade, Trust};

const NONE: [(&str, &str); 0] = [];

fn read_with(args: &str, variables: &[(&str, &str)]) -> Result<Request, ConfigError> {
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()));
    read(args.split_whitespace().map(str::to_owned), variables)
}

fn config_with(args: &str, variables: &[(&str, &str)]) -> Config {
    match read_with(args, variables) {
        Ok(Request::Serve(config)) => *config,
        other => panic!("{args:?} with {variables:?} gives {other:?}"),
    }
}

fn config(args: &str) -> Config {
    config_with(args, &NONE)
}

fn error(args: &str) -> String {
    error_with(args, &NONE)
}

fn error_with(args: &str, variables: &[(&str, &str)]) -> String {
    match read_with(args, variables) {
        Err(error) => error.to_string(),
        Ok(request) => panic!("{args:?} with {variables:?} gives {request:?}"),
    }
}

fn texts(urls: &[Url]) -> Vec<&str> {
    urls.iter().map(Url::as_str).collect()
}

/// The configuration that a file with `text` gives.
fn file(text: &str) -> Result<Config, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    match read_with(&format!("--config-file {path}"), &NONE) {
        Ok(Request::Serve(config)) => Ok(*config),
        Ok(other) => panic!("{text:?} gives {other:?}"),
        Err(error) => Err(error.to_string().replace(&path, "FILE")),
    }
}

#[test]
fn without_options_everything_has_its_default() {
    let config = config("");
    assert_eq!(config.name, "default");
    assert_eq!(config.data_dir, PathBuf::from("default.stele"));
    assert_eq!(config.wal_dir, None);
    assert_eq!(texts(&config.listen.client), ["http://localhost:2379"]);
    assert_eq!(texts(&config.listen.client_http), [""; 0]);
    assert_eq!(texts(&config.listen.metrics), [""; 0]);
    assert_eq!(
        texts(&config.advertise_client_urls),
        ["http://localhost:2379"]
    );
    assert_eq!(
        config.connections,
        listener::Settings {
            max_concurrent_streams: u32::MAX,
            ping_interval: Some(Duration::from_secs(7200)),
            ping_timeout: Duration::from_secs(20),
            min_ping_interval: Duration::from_secs(5),
        }
    );
    assert_eq!(config.tls, None);
    assert_eq!(
        config.access,
        Access {
            origins: vec!["*".into()],
            hosts: vec!["*".into()]
        }
    );
    assert!(config.has_gateway);
    assert_eq!(config.heartbeat, Duration::from_millis(100));
    assert_eq!(config.election_timeout, Duration::from_secs(1));
    assert!(!config.unsafe_no_fsync);
    assert_eq!(config.max_request_bytes, 1_572_864);
    assert_eq!(config.max_txn_ops, 128);
    assert_eq!(config.quota_bytes, Some(2_147_483_648));
    assert_eq!(config.cache_bytes, 128 << 20);
    assert_eq!(config.auto_compaction, None);
    assert_eq!(config.watch_progress_interval, Duration::from_secs(600));
    assert_eq!(config.slow_apply, Duration::from_millis(100));
    assert!(!config.has_extensive_metrics);
    assert_eq!(config.log, logging::Settings::default());
    assert_eq!(config.notices, [""; 0]);
    let Start::New(bootstrap) = config.initial.start("default").unwrap() else {
        panic!("{:?}", config.initial);
    };
    assert_eq!(bootstrap.member_id, 0x8e9e_05c5_2164_694d);
    assert_eq!(bootstrap.cluster_id, 0xcdf8_1819_4e3a_8c32);
    assert_eq!(bootstrap.members[0].peer_urls, ["http://localhost:2380"]);
    assert_eq!(texts(&config.listen.peer), ["http://localhost:2380"]);
    let cluster = Cluster {
        advances_first_election: true,
        has_pre_vote: true,
        checks_reconfiguration: true,
        max_learners: 1,
        snapshot_entries: 10_000,
        catch_up_entries: 5000,
        checks_corruption_first: false,
        corruption_check_interval: None,
        has_lease_checkpoints: true,
        is_forced_new: false,
    };
    assert_eq!(config.cluster, cluster);
}

#[test]
fn a_manifest_of_kubeadm_starts() {
    let args = "--advertise-client-urls=https://10.0.0.1:2379 \
        --cert-file=/etc/kubernetes/pki/etcd/server.crt --client-cert-auth=true \
        --data-dir=/var/lib/etcd --feature-gates=InitialCorruptCheck=true \
        --initial-advertise-peer-urls=https://10.0.0.1:2380 \
        --initial-cluster=cp=https://10.0.0.1:2380 \
        --key-file=/etc/kubernetes/pki/etcd/server.key \
        --listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379 \
        --listen-metrics-urls=http://127.0.0.1:2381 --listen-peer-urls=https://10.0.0.1:2380 \
        --name=cp --peer-cert-file=/etc/kubernetes/pki/etcd/peer.crt --peer-client-cert-auth=true \
        --peer-key-file=/etc/kubernetes/pki/etcd/peer.key \
        --peer-trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt --snapshot-count=10000 \
        --trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt \
        --watch-progress-notify-interval=5s";
    let config = config(args);
    assert_eq!(
        texts(&config.listen.client),
        ["https://10.0.0.1:2379", "https://127.0.0.1:2379"]
    );
    assert_eq!(texts(&config.listen.metrics), ["http://127.0.0.1:2381"]);
    assert_eq!(config.watch_progress_interval, Duration::from_secs(5));
    let auth = config.tls.unwrap().client_auth.unwrap();
    assert_eq!(
        auth.ca_file,
        PathBuf::from("/etc/kubernetes/pki/etcd/ca.crt")
    );
    assert!(config.initial.start("cp").is_ok());
    assert!(config.cluster.checks_corruption_first);
    assert_eq!(config.notices, [""; 0]);
    let port = config.peer_tls.listen.unwrap();
    let ca_file = PathBuf::from("/etc/kubernetes/pki/etcd/ca.crt");
    assert_eq!(port.client_auth.unwrap().ca_file, ca_file);
    let dial = config.peer_tls.dial.unwrap();
    assert_eq!(dial.trust, Trust::Authorities(ca_file));
    let pair = dial.key_pair.unwrap();
    assert_eq!(
        (pair.cert_file, pair.key_file),
        (
            PathBuf::from("/etc/kubernetes/pki/etcd/peer.crt"),
            PathBuf::from("/etc/kubernetes/pki/etcd/peer.key")
        )
    );
}

#[test]
fn flags_are_written_as_in_go() {
    assert_eq!(config("-name a").name, "a");
    assert_eq!(config("--name a --name=b").name, "b", "the last one counts");
    assert_eq!(config("--name=").name, "", "an empty value is a value");
    assert_eq!(
        config("--name --data-dir").name,
        "--data-dir",
        "so is anything that follows"
    );
    assert_eq!(config("--name=a=b").name, "a=b");
    assert!(config("-unsafe-no-fsync").unsafe_no_fsync);
    assert!(!config("--unsafe-no-fsync=F").unsafe_no_fsync);
    assert_eq!(config("--").name, "default");
    assert_eq!(config("--quota-backend-bytes -1").quota_bytes, None);
    assert_eq!(config("--max-txn-ops=0x10").max_txn_ops, 16);
}

#[test]
fn command_lines_that_cannot_be_read_show_the_usage() {
    for (args, text) in [
        ("--nmae a", "unknown flag: --nmae"),
        ("---name a", "not a flag: ---name"),
        ("-=a", "not a flag: -=a"),
        ("--name", "flag needs a value: --name"),
        (
            "--max-txn-ops=many",
            r#"invalid value "many" for flag --max-txn-ops: not an unsigned integer"#,
        ),
        (
            "--pre-vote=maybe",
            r#"invalid value "maybe" for flag --pre-vote: not a boolean (true, false, 1, 0, t or f)"#,
        ),
        (
            "--initial-cluster-state=old",
            r#"invalid value "old" for flag --initial-cluster-state: must be one of: new, existing"#,
        ),
    ] {
        let error = read_with(args, &NONE).unwrap_err();
        assert_eq!(error.to_string(), text);
        assert!(error.is_usage(), "{args:?}");
    }
    // A word that belongs to no flag is another matter: exit code 1.
    for args in ["serve", "--unsafe-no-fsync true", "-", "-- x"] {
        assert!(
            matches!(read_with(args, &NONE), Err(ConfigError::Leftover(_))),
            "{args:?}"
        );
    }
}

#[test]
fn help_and_version_come_before_everything_else() {
    assert_eq!(read_with("-h", &NONE), Ok(Request::Help));
    assert_eq!(
        read_with("--help --heartbeat-interval 0", &NONE),
        Ok(Request::Help)
    );
    assert_eq!(
        read_with("--version", &[("ETCD_NAME", "a")]),
        Ok(Request::Version)
    );
}

#[test]
fn variables_fill_flags_that_are_not_given() {
    let config = config_with(
        "--name a",
        &[
            ("ETCD_DATA_DIR", "/data"),
            ("ETCD_SNAPSHOT_COUNT", ""),
            ("ETCD_UNSAFE_NO_FSYNC", "true"),
            ("ETCDCTL_API", "3"),
            ("PATH", "/bin"),
            ("ETCD_VER", "v3"),
            ("ETCD_VERSION", "true"),
        ],
    );
    assert_eq!(config.data_dir, PathBuf::from("/data"));
    assert!(config.unsafe_no_fsync);
    assert_eq!(
        config.notices,
        [
            "unrecognized environment variable ETCD_VER",
            "unrecognized environment variable ETCD_VERSION",
        ]
    );

    let both = "environment variable ETCD_NAME conflicts with flag --name; unset the one or leave \
                out the other";
    assert_eq!(error_with("--name a", &[("ETCD_NAME", "a")]), both);
    assert_eq!(error_with("--name a", &[("ETCD_NAME", "")]), both);
    let bad = error_with("", &[("ETCD_MAX_TXN_OPS", "x")]);
    assert_eq!(
        bad,
        r#"invalid value "x" for environment variable ETCD_MAX_TXN_OPS: not an unsigned integer"#
    );
}

#[test]
fn options_are_checked_against_each_other() {
    for (args, text) in [
        (
            "--heartbeat-interval 0",
            "--heartbeat-interval must be above 0",
        ),
        (
            "--heartbeat-interval 300",
            "--election-timeout (1000 ms) must be at least five times --heartbeat-interval (300 ms)",
        ),
        (
            "--election-timeout 50001",
            "--election-timeout (50001 ms) must be at most 50000 ms",
        ),
        (
            "--listen-client-urls http://127.0.0.1:1",
            "--listen-client-urls is given, so --advertise-client-urls must be too",
        ),
        (
            "--listen-client-urls= --advertise-client-urls http://a:1",
            "--listen-client-urls must name a URL",
        ),
        (
            "--listen-metrics-urls http://example.com:1",
            "--listen-metrics-urls: URL to listen on must have an IP address or localhost as its \
             host: http://example.com:1",
        ),
        (
            "--advertise-client-urls http://:1",
            "--advertise-client-urls: URL to advertise has no host: http://:1",
        ),
        (
            "--listen-metrics-urls https://127.0.0.1:1 --cert-file c",
            "https://127.0.0.1:1 needs --cert-file and --key-file, or --auto-tls",
        ),
        (
            "--listen-metrics-urls https://127.0.0.1:1 --cert-file c --key-file k --client-cert-auth",
            "--client-cert-auth needs --trusted-ca-file",
        ),
        (
            "--tls-min-version TLS1.3 --tls-max-version TLS1.2",
            "--tls-min-version is above --tls-max-version",
        ),
        (
            "--tls-min-version TLS1.1",
            r#"--tls-min-version is "TLS1.1", must be TLS1.2 or TLS1.3"#,
        ),
        (
            "--cipher-suites FANCY",
            r#"--cipher-suites: unknown cipher suite "FANCY""#,
        ),
        (
            "--cipher-suites TLS_RSA_WITH_AES_128_CBC_SHA --tls-min-version TLS1.3",
            "--cipher-suites are for TLS 1.2, which --tls-min-version rules out",
        ),
        (
            "--auto-compaction-mode often",
            r#"--auto-compaction-mode is "often", must be one of: periodic, revision"#,
        ),
        (
            "--auto-compaction-retention often",
            r#"--auto-compaction-retention in mode periodic: "often" is not a duration (such as 100ms, 5s or 1h30m)"#,
        ),
        (
            "--auto-compaction-mode revision --auto-compaction-retention 1h",
            r#"--auto-compaction-retention in mode revision: "1h" is not a number of revisions"#,
        ),
        (
            "--compact-hash-check-time 0s",
            "--compact-hash-check-time must be above 0",
        ),
        (
            "--feature-gates Fancy=true",
            "--feature-gates: unrecognized feature gate: Fancy",
        ),
        (
            "--log-level loud",
            r#"--log-level is "loud", must be one of: debug, info, warn, error, panic, fatal"#,
        ),
        (
            "--logger plain",
            r#"--logger is "plain", must be one of: zap"#,
        ),
        (
            "--cors example.com",
            r#"--cors: "example.com" is neither a URL nor *"#,
        ),
        (
            "--auto-tls --self-signed-cert-validity 0",
            "--self-signed-cert-validity is 0, must be from 1 to 1000 years",
        ),
        (
            "--peer-auto-tls --self-signed-cert-validity 1001",
            "--self-signed-cert-validity is 1001, must be from 1 to 1000 years",
        ),
        (
            "--discovery-srv example.com",
            "--discovery-srv: finding the members by discovery comes in a later release of stele; \
             name them in --initial-cluster",
        ),
    ] {
        assert_eq!(error(args), text);
        assert!(!read_with(args, &NONE).unwrap_err().is_usage(), "{args:?}");
    }
}

#[test]
fn history_is_kept_by_time_or_by_revisions() {
    let auto = |args: &str| config(args).auto_compaction;
    let hours = |hours: u64| Some(AutoCompaction::Periodic(Duration::from_secs(hours * 3600)));
    assert_eq!(auto("--auto-compaction-retention 0"), None);
    assert_eq!(auto("--auto-compaction-retention 0s"), None);
    assert_eq!(auto("--auto-compaction-retention 8"), hours(8));
    assert_eq!(auto("--auto-compaction-retention 24h"), hours(24));
    let revision = "--auto-compaction-mode=revision --auto-compaction-retention";
    assert_eq!(
        auto(&format!("{revision} 1000")),
        Some(AutoCompaction::Revision(1000))
    );
    assert_eq!(auto(&format!("{revision} 0")), None);
}

#[test]
fn progress_notifications_have_a_shortest_interval() {
    let config = config("--watch-progress-notify-interval 5ms");
    assert_eq!(config.watch_progress_interval, Duration::from_millis(100));
    assert_eq!(
        config.notices,
        ["--watch-progress-notify-interval is raised from 5ms to 100ms"]
    );
}

#[test]
fn options_without_effect_are_named_in_one_line() {
    let config = config(
        "--auth-token-ttl 60 --max-wals 9 --strict-reconfig-check=true --proxy on --snapshot \
         --enable-pprof --max-snapshots 5",
    );
    assert_eq!(
        config.notices,
        [
            "flags accepted without effect: not built yet: --auth-token-ttl, --enable-pprof; about \
         parts of etcd that are not here: --max-wals; long without meaning: --snapshot, --proxy"
        ]
    );
}

#[test]
fn certificates_without_a_url_that_uses_them_are_named() {
    let config = config("--cert-file c --key-file k --client-cert-auth");
    assert_eq!(config.tls, None);
    assert_eq!(
        config.notices,
        [
            "TLS is off, since no URL to listen on is https or unixs; unused: --cert-file, --key-file, \
         --client-cert-auth"
        ]
    );
}

#[test]
fn older_names_stand_for_newer_ones() {
    let old = config_with(
        "--experimental-watch-progress-notify-interval=5s",
        &[("ETCD_EXPERIMENTAL_INITIAL_CORRUPT_CHECK", "true")],
    );
    assert_eq!(old.watch_progress_interval, Duration::from_secs(5));
    let feature = old
        .features
        .iter()
        .find(|feature| feature.name == "InitialCorruptCheck");
    assert!(feature.unwrap().is_on);
    assert_eq!(
        old.notices,
        [
            "--experimental-watch-progress-notify-interval is deprecated, use \
         --watch-progress-notify-interval",
            "--experimental-initial-corrupt-check is deprecated, use \
         --feature-gates=InitialCorruptCheck",
        ]
    );
    let both = "--experimental-warning-apply-duration=1s --warning-apply-duration=2s";
    assert_eq!(config(both).slow_apply, Duration::from_secs(2));
}

#[test]
fn a_cluster_is_made_of_this_member_alone() {
    let bootstrap = |args: &str| {
        let config = config(args);
        match config.initial.start(&config.name) {
            Ok(Start::New(bootstrap)) => bootstrap,
            other => panic!("{other:?}"),
        }
    };
    let vector = bootstrap(
        "--name m --initial-cluster m=http://127.0.0.1:23800 \
         --initial-advertise-peer-urls http://127.0.0.1:23800",
    );
    assert_eq!(vector.cluster_id, 324_952_591_200_643_719);
    let two_urls = "--name m --initial-advertise-peer-urls http://a:1,http://b:1 --initial-cluster \
                    m=http://b:1,m=http://a:1";
    assert_eq!(bootstrap(two_urls).members.len(), 1);
    let token = bootstrap("--initial-cluster-token other");
    assert_ne!(token.member_id, 0x8e9e_05c5_2164_694d);
}

#[test]
fn a_file_replaces_flags_and_variables() {
    let yaml = "
        name: from-file
        listen-client-urls: http://127.0.0.1:1,http://127.0.0.2:1
        heartbeat-interval: 50
        unsafe-no-fsync: true
        quota-backend-bytes: -1
        grpc-keepalive-interval: 60000000000
        auto-compaction-retention: \"1h\"
        log-outputs: [stdout, /var/log/stele]
        cors: https://a.example,https://b.example
        feature-gates: CompactHashCheck=true
        wholly-unknown: {a: 1}
        socket-options: {reuse-port: true}
        client-transport-security: {cert-file: c, key-file: k}
        advertise-client-urls: ''
    ";
    let config = file(yaml).unwrap();
    assert_eq!(config.name, "from-file");
    assert_eq!(
        texts(&config.listen.client),
        ["http://127.0.0.1:1", "http://127.0.0.2:1"]
    );
    assert_eq!(
        texts(&config.advertise_client_urls),
        ["http://localhost:2379"]
    );
    assert!(config.listen.sockets.reuses_port);
    assert_eq!(config.heartbeat, Duration::from_millis(50));
    assert!(config.unsafe_no_fsync);
    assert_eq!(config.quota_bytes, None);
    assert_eq!(
        config.connections.ping_interval,
        Some(Duration::from_secs(60))
    );
    assert_eq!(
        config.auto_compaction,
        Some(AutoCompaction::Periodic(Duration::from_secs(3600)))
    );
    let outputs = [
        logging::Output::Stdout,
        logging::Output::File("/var/log/stele".into()),
    ];
    assert_eq!(config.log.outputs, outputs);
    assert_eq!(
        config.access.origins,
        ["https://a.example", "https://b.example"]
    );
    assert_eq!(
        config.notices.len(),
        2,
        "TLS unused, a feature gate: {:?}",
        config.notices
    );

    assert_eq!(file(r#"{"name": "json"}"#).unwrap().name, "json");
    assert_eq!(file("").unwrap().name, "default");
}

#[test]
fn bad_files_are_refused_with_the_key() {
    let start = "configuration file FILE:";
    for (text, reason) in [
        (
            "heartbeat-interval: fast",
            "heartbeat-interval: must be an integer",
        ),
        (
            "grpc-keepalive-interval: 5s",
            "grpc-keepalive-interval: must be an integer (nanoseconds)",
        ),
        (
            "client-transport-security: {client-cert-auth: maybe}",
            "client-transport-security/client-cert-auth: must be true or false",
        ),
        ("log-outputs: [1]", "log-outputs: must be a list of strings"),
        ("- a", "must be a mapping of options"),
    ] {
        assert_eq!(file(text).unwrap_err(), format!("{start} {reason}"));
    }
    assert!(file("a: [").unwrap_err().starts_with(start));
    let missing = error("--config-file /nowhere/at-all");
    assert!(
        missing.starts_with("configuration file /nowhere/at-all: "),
        "{missing}"
    );
}

#[test]
fn with_a_file_other_options_are_ignored_but_said_to_be() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"name: from-file").unwrap();
    let path = file.path().to_str().unwrap();
    let variables = [("ETCD_CONFIG_FILE", path), ("ETCD_NAME", "variable")];
    let config = config_with("--name flag", &variables);
    assert_eq!(config.name, "from-file");
    assert_eq!(config.notices.len(), 1);
    assert!(
        config.notices[0].contains("are ignored"),
        "{:?}",
        config.notices
    );
    // A command line that cannot be read is refused all the same.
    assert!(error(&format!("--config-file {path} --nmae a")).starts_with("unknown flag"));
}

#[test]
fn tls_between_members() {
    let peers = "--listen-peer-urls https://127.0.0.1:2380";
    let refusals = [
        (
            peers.to_owned(),
            "https://127.0.0.1:2380 needs --peer-cert-file and --peer-key-file, or --peer-auto-tls",
        ),
        (
            format!("{peers} --peer-cert-file c"),
            "--peer-cert-file and --peer-key-file must be given together",
        ),
        (
            format!("{peers} --peer-cert-file c --peer-key-file k --peer-client-cert-auth"),
            "--peer-client-cert-auth needs --peer-trusted-ca-file",
        ),
        (
            format!("{peers} --peer-cert-file c --peer-key-file k --peer-crl-file crl"),
            "--peer-crl-file needs --peer-trusted-ca-file",
        ),
    ];
    for (args, text) in refusals {
        assert_eq!(error(&args), text);
    }
    let full = config(&format!(
        "{peers} --peer-cert-file c --peer-key-file k --peer-trusted-ca-file ca \
         --peer-client-cert-file cc --peer-client-key-file ck --peer-cert-allowed-cn a,b \
         --peer-crl-file crl"
    ));
    let port = full.peer_tls.listen.unwrap();
    assert_eq!(port.cert_file, PathBuf::from("c"));
    assert!(port.checks_origin);
    let auth = port.client_auth.unwrap();
    assert_eq!(auth.allowed_common_names, ["a", "b"]);
    assert_eq!(auth.crl_file, Some(PathBuf::from("crl")));
    let dial = full.peer_tls.dial.unwrap();
    assert_eq!(dial.key_pair.unwrap().cert_file, PathBuf::from("cc"));
    assert_eq!(dial.trust, Trust::Authorities(PathBuf::from("ca")));
    assert_eq!(config("").peer_tls, PeerTls::default());
    let anywhere = config(&format!(
        "{peers} --peer-cert-file c --peer-key-file k --peer-trusted-ca-file ca \
         --peer-skip-client-san-verification"
    ));
    assert!(!anywhere.peer_tls.listen.unwrap().checks_origin);
    assert!(anywhere.notices.is_empty(), "{:?}", anywhere.notices);
}

#[test]
fn certificates_can_be_made_by_the_server() {
    let made = config(
        "--data-dir d --auto-tls --peer-auto-tls --self-signed-cert-validity 3 \
         --listen-client-urls https://127.0.0.1:2379,https://[::1]:2379,unixs:///run/s \
         --advertise-client-urls https://127.0.0.1:2379 \
         --listen-client-http-urls https://127.0.0.1:2381 --listen-peer-urls https://0.0.0.0:2380",
    );
    assert!(made.notices.is_empty(), "{:?}", made.notices);
    let client = SelfMade {
        directory: PathBuf::from("d/fixtures/client"),
        hosts: ["127.0.0.1", "::1", "localhost"]
            .map(str::to_owned)
            .to_vec(),
        validity_years: 3,
    };
    let peer = SelfMade {
        directory: PathBuf::from("d/fixtures/peer"),
        hosts: vec!["0.0.0.0".to_owned()],
        validity_years: 3,
    };
    let tls = made.tls.unwrap();
    assert_eq!(
        (tls.cert_file, tls.key_file),
        (client.cert_file(), client.key_file())
    );
    let port = made.peer_tls.listen.unwrap();
    assert_eq!(port.cert_file, peer.cert_file());
    assert_eq!(port.client_auth, None);
    let dial = made.peer_tls.dial.unwrap();
    assert_eq!(dial.trust, Trust::Anybody);
    assert_eq!(dial.key_pair.unwrap().key_file, peer.key_file());
    let (client, peer) = (Some(client), Some(peer));
    assert_eq!(made.self_made, SelfMades { client, peer });
}

#[test]
fn self_made_certificates_give_way_and_ask_nobody() {
    let https = "--listen-client-urls https://127.0.0.1:1 --advertise-client-urls https://a:1 \
                 --auto-tls";
    let given = config(&format!("{https} --cert-file c --key-file k"));
    assert_eq!(given.self_made, SelfMades::default());
    assert_eq!(given.tls.unwrap().cert_file, PathBuf::from("c"));
    assert_eq!(
        given.notices,
        ["--auto-tls is ignored, since --cert-file, --key-file is given"]
    );
    let asking = config(&format!("{https} --client-cert-auth --trusted-ca-file ca"));
    assert_eq!(asking.tls.unwrap().client_auth, None);
    assert_eq!(
        asking.notices,
        [
            "--auto-tls asks nobody for a certificate and trusts everybody; unused: \
             --client-cert-auth, --trusted-ca-file"
        ]
    );
    let peers = config("--peer-auto-tls --peer-trusted-ca-file ca");
    assert_eq!(peers.peer_tls.listen, None);
    assert_eq!(peers.notices.len(), 1, "{:?}", peers.notices);
}

#[test]
fn connections_to_peers_can_come_from_where_others_dial() {
    let with = |urls: &str| {
        config(&format!(
            "--feature-gates SetMemberLocalAddr=true --initial-advertise-peer-urls {urls} \
             --initial-cluster default={}",
            urls.replace(',', ",default=")
        ))
    };
    let local = "http://localhost:1,http://127.0.0.1:2,http://0.0.0.0:3";
    let some = with(&format!(
        "{local},http://[2001:db8::1]:4,http://192.0.2.1:5"
    ));
    // The first in the order of their texts, in which etcd keeps URLs.
    assert_eq!(some.peer_local_address, Some("192.0.2.1".parse().unwrap()));
    assert!(some.notices.is_empty(), "{:?}", some.notices);
    let none = with(local);
    assert_eq!(none.peer_local_address, None);
    assert!(none.notices[0].starts_with("feature gate SetMemberLocalAddr has no effect"));
    assert_eq!(config("--initial-advertise-peer-urls http://192.0.2.1:5 --initial-cluster default=http://192.0.2.1:5").peer_local_address, None);
}

#[test]
fn how_a_member_behaves_among_others() {
    let cluster = config(
        "--pre-vote=false --initial-election-tick-advance=false --strict-reconfig-check=false \
         --max-learners 3 --snapshot-count 50 --snapshot-catchup-entries 7 --corrupt-check-time 5m \
         --feature-gates LeaseCheckpoint=false --force-new-cluster",
    )
    .cluster;
    let expected = Cluster {
        advances_first_election: false,
        has_pre_vote: false,
        checks_reconfiguration: false,
        max_learners: 3,
        snapshot_entries: 50,
        catch_up_entries: 7,
        checks_corruption_first: false,
        corruption_check_interval: Some(Duration::from_secs(300)),
        has_lease_checkpoints: false,
        is_forced_new: true,
    };
    assert_eq!(cluster, expected);
    assert_eq!(
        error("--max-learners=-1"),
        "--max-learners must not be below 0"
    );
}
