//! A node as a whole, on ports that the kernel chooses.

use std::future::{pending, ready};

use super::*;
use crate::config::{self, Request};
use crate::http::dial::{self, Dialer};
use crate::http::tls::{ClientTls, Trust};

fn config(data_dir: &std::path::Path) -> Config {
    config_of(
        data_dir,
        &[
            "--listen-client-urls=http://127.0.0.1:0",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:0",
        ],
    )
}

fn config_of(data_dir: &std::path::Path, args: &[&str]) -> Config {
    let data_dir = data_dir.to_str().expect("temporary paths are UTF-8");
    let args = [&["--data-dir", data_dir], args].concat();
    let args = args.iter().map(|arg| (*arg).to_owned());
    match config::read(args, Vec::new()) {
        Ok(Request::Serve(config)) => *config,
        _ => panic!("a command line of our own"),
    }
}

#[tokio::test]
async fn a_removed_member_stays_for_its_last_messages() {
    let told = ending(pending(), ready(()), || ready(()));
    assert_eq!(told.await, Ending::Removed);
    // The removal alone ends nothing: the failure comes first.
    let fails = tokio::task::yield_now();
    let staying = ending(fails, ready(()), pending);
    assert_eq!(staying.await, Ending::Failed);
}

/// Into a directory where only they are yet, as after a start that failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_makes_its_own_certificates_once() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    std::fs::create_dir_all(data_dir.join("fixtures/peer")).unwrap();
    let config = || {
        config_of(
            &data_dir,
            &[
                "--auto-tls",
                "--peer-auto-tls",
                "--listen-client-urls=https://127.0.0.1:0",
                "--advertise-client-urls=https://127.0.0.1:2379",
                "--listen-peer-urls=https://127.0.0.1:0",
                "--initial-advertise-peer-urls=https://127.0.0.1:2380",
                "--initial-cluster=default=https://127.0.0.1:2380",
            ],
        )
    };
    let mut made = Vec::new();
    for _ in 0..2 {
        let node = Node::start(config()).await.unwrap();
        let url = format!("https://{}", node.client_addrs()[0])
            .parse()
            .unwrap();
        let trust = Trust::Authorities(data_dir.join("fixtures/client/cert.pem"));
        let tls = ClientTls {
            trust,
            ..config().peer_tls.dial.unwrap()
        };
        let dialer = Dialer::new(dial::Settings {
            tls: Some(tls),
            local_address: None,
            connect_limit: Duration::from_secs(10),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(10),
        });
        let dialed = dialer.dial::<String>(&url, ::http::HeaderMap::new()).await;
        assert!(dialed.is_ok(), "{:?}", dialed.err());
        node.stop().await;
        let peer = data_dir.join("fixtures/peer/cert.pem");
        made.push(std::fs::read(peer).unwrap());
    }
    assert_eq!(made[0], made[1]);
}

#[tokio::test]
async fn a_chore_that_panics_is_noticed() {
    let mut running = JoinSet::new();
    running.spawn(pending());
    running.spawn(async {});
    let chores = Chores::supervise(running);
    let broken = chores.broken.clone();
    tokio::task::yield_now().await;
    chores.stop().await;
    assert!(!broken.is_cancelled(), "one was done, one was stopped");

    let mut running = JoinSet::new();
    running.spawn(pending());
    running.spawn(async { panic!("as a chore does not") });
    let chores = Chores::supervise(running);
    chores.broken.cancelled().await;
    chores.stop().await;
}

/// What it would propose may come back in a state, which answers nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_known_proposes_nothing_at_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let node = Node::start(config(&data_dir)).await.unwrap();
    let applied = node.consensus.status().applied_index;
    assert_eq!(node.published.members()[0].client_ur_ls.len(), 1);
    node.stop().await;
    let node = Node::start(config(&data_dir)).await.unwrap();
    // No more than the entry that begins a term.
    assert_eq!(node.consensus.status().applied_index, applied + 1);
    node.stop().await;
}
