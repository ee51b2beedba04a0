//! A node as a whole, on ports that the kernel chooses.

use std::future::{pending, ready};

use super::*;
use crate::config::{self, Request};

fn config(data_dir: &std::path::Path) -> Config {
    let args = [
        "--data-dir",
        data_dir.to_str().expect("temporary paths are UTF-8"),
        "--listen-client-urls=http://127.0.0.1:0",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:0",
    ];
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
