//! From the options of the process to the settings of each part.

use std::path::Path;

use crate::chores::auto_compact;
use crate::config::{AutoCompaction, Config};
use crate::consensus::{self, transfer, transport};
use crate::machine::members::Identity;
use crate::storage::data_dir::DataDir;
use crate::{rpc, storage, watch};

pub(super) fn storage(config: &Config) -> storage::Settings {
    storage::Settings {
        block_cache_bytes: config.cache_bytes,
        ..storage::Settings::default()
    }
}

/// The ring for watchers that are a little behind shrinks with the caches.
pub(super) fn watch(config: &Config) -> watch::Settings {
    /// A sixteenth of the default cache is the default ring.
    const RING_SHARE: usize = 16;
    let defaults = watch::Settings::default();
    watch::Settings {
        ring_bytes: defaults.ring_bytes.min(config.cache_bytes / RING_SHARE),
        ..defaults
    }
}

pub(super) fn consensus(
    config: &Config,
    data_dir: &DataDir,
    identity: Identity,
) -> consensus::Settings {
    let raft_dir = config.wal_dir.as_deref().map(Path::to_path_buf);
    consensus::Settings {
        raft_dir: raft_dir.unwrap_or_else(|| data_dir.raft_dir()),
        member_id: identity.member_id,
        heartbeat: config.heartbeat,
        election_timeout: config.election_timeout,
        max_request_bytes: config.max_request_bytes,
        slow_apply: config.slow_apply,
        unsafe_no_fsync: config.unsafe_no_fsync,
        pre_vote: config.cluster.has_pre_vote,
        initial_election_tick_advance: config.cluster.advances_first_election,
        is_forced_new: config.cluster.is_forced_new,
        entries_per_flush: match config.cluster.snapshot_entries {
            0 | ETCD_SNAPSHOT_ENTRIES => consensus::ENTRIES_PER_FLUSH,
            entries => entries,
        },
        catch_up_entries: match config.cluster.catch_up_entries {
            ETCD_CATCH_UP_ENTRIES => None,
            entries => Some(entries),
        },
    }
}

/// etcd's defaults, which common manifests pass as they are, stand for our own:
/// etcd keeps entries in memory, here they are on disk and a flush has a price.
const ETCD_SNAPSHOT_ENTRIES: u64 = 10_000;
const ETCD_CATCH_UP_ENTRIES: u64 = 5_000;

pub(super) fn transport(config: &Config, identity: Identity) -> transport::Settings {
    let peer_urls = config.initial.peer_urls().iter();
    transport::Settings {
        cluster_id: identity.cluster_id,
        member_id: identity.member_id,
        peer_urls: peer_urls.map(ToString::to_string).collect(),
        election_timeout: config.election_timeout,
        tls: config.peer_tls.dial.clone(),
        local_address: config.peer_local_address,
    }
}

pub(super) fn transfer(data_dir: &DataDir, identity: Identity) -> transfer::Settings {
    transfer::Settings {
        outgoing_dir: data_dir.outgoing_dir(),
        incoming_dir: data_dir.incoming_dir(),
        member_id: identity.member_id,
        bytes_per_second: transfer::Settings::BYTES_PER_SECOND,
    }
}

pub(super) fn rpc(config: &Config) -> rpc::Settings {
    rpc::Settings {
        max_request_bytes: config.max_request_bytes,
        max_txn_ops: config.max_txn_ops,
        quota_bytes: config.quota_bytes,
        election_timeout: config.election_timeout,
        progress_notify_interval: config.watch_progress_interval,
        checks_reconfiguration: config.cluster.checks_reconfiguration,
        max_learners: config.cluster.max_learners,
    }
}

pub(super) fn auto_compaction(config: &Config) -> auto_compact::Mode {
    match config.auto_compaction {
        None => auto_compact::Mode::Off,
        Some(AutoCompaction::Periodic(period)) => auto_compact::Mode::Periodic(period),
        Some(AutoCompaction::Revision(count)) => auto_compact::Mode::Revision(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Request};
    use crate::storage::data_dir::open_data_dir;

    fn config(args: &[&str]) -> Config {
        let args = args.iter().map(|arg| (*arg).to_owned());
        let Ok(Request::Serve(config)) = config::read(args, Vec::new()) else {
            panic!("a command line of our own");
        };
        *config
    }

    fn of(args: &[&str]) -> consensus::Settings {
        let dir = tempfile::tempdir().unwrap();
        let config = config(args);
        let data_dir = open_data_dir(&dir.path().join("data")).unwrap();
        let identity = Identity {
            cluster_id: 1,
            member_id: 2,
        };
        consensus(&config, &data_dir, identity)
    }

    #[test]
    fn elections_and_the_log_follow_the_options() {
        let settings = of(&[]);
        assert!(settings.pre_vote && settings.initial_election_tick_advance);
        assert_eq!(settings.entries_per_flush, consensus::ENTRIES_PER_FLUSH);
        assert_eq!(settings.catch_up_entries, None);
        let settings = of(&[
            "--pre-vote=false",
            "--initial-election-tick-advance=false",
            "--snapshot-count=50",
            "--snapshot-catchup-entries=0",
        ]);
        assert!(!settings.pre_vote && !settings.initial_election_tick_advance);
        assert_eq!(settings.entries_per_flush, 50);
        assert_eq!(settings.catch_up_entries, Some(0));
    }

    #[test]
    fn the_ring_shrinks_with_the_caches_and_grows_no_further() {
        let default = watch::Settings::default().ring_bytes;
        assert_eq!(watch(&config(&[])).ring_bytes, default);
        let many = config(&["--stele-cache-bytes=1000000000"]);
        assert_eq!(watch(&many).ring_bytes, default);
        let few = config(&["--stele-cache-bytes=1600000"]);
        assert_eq!(watch(&few).ring_bytes, 100_000);
    }
}
