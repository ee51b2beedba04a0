//! Messages and calls between members.
//!
//! Owns the connections to the other members and the service they call. It
//! promises to raft what raft needs and no more: messages of a lane arrive in
//! order or not at all, never twice, never from another cluster or for another
//! member; sending never blocks, and what waits for a peer is bounded. What it
//! cannot send it drops and says so.
//!
//! | file | owns |
//! |---|---|
//! | `remote` | the connection to one peer, and the task that keeps it |
//! | `lane` | what waits for a peer; frames of it |
//! | `service` | the serving side |
//! | `handshake` | who may talk to whom |
//! | `wire` | raft's messages as bytes |
//! | `peers` | calls that are no messages of raft |
//!
//! Left to others: what the calls mean, and the content of snapshots.

mod handshake;
mod lane;
mod peers;
mod remote;
mod service;
#[cfg(test)]
mod tests;
pub mod wire;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use raft::eraftpb::{Message, MessageType};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Peer, PeerInbox, Transport};
use crate::http::Url;
use crate::http::dial::{self, Dialer};
use crate::http::tls::ClientTls;
pub use peers::{Peers, members_of};
pub use remote::PeerLink;
use remote::Remote;
pub use service::{PeerCalls, SnapshotReceiver, SnapshotReplies};

/// Callers that are taken for members without being known as such, at a time.
/// More than a cluster has members; each costs a task and two empty queues.
const MAX_STRANGERS: usize = 16;

/// How long a removed peer is still sent what was on its way, so that it hears
/// of its removal.
const LINGER: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub struct Settings {
    pub cluster_id: u64,
    pub member_id: u64,
    /// Where this member is reached.
    pub peer_urls: Vec<String>,
    /// Also settles how soon a silent peer is given up.
    pub election_timeout: Duration,
    /// For dialing `https`.
    pub tls: Option<ClientTls>,
    /// Where connections to others come from; none: the system chooses.
    pub local_address: Option<IpAddr>,
}

/// Sends the state of this member to others.
pub trait SnapshotOutbox: Send {
    /// Takes a `MsgSnapshot`. Must not block, and must lead to
    /// [`PeerInbox::snapshot_sent`].
    fn send(&mut self, message: Message);
}

/// What raft's drive loop sends through.
pub struct PeerTransport {
    group: Arc<Group>,
    snapshots: Option<Box<dyn SnapshotOutbox>>,
}

/// What this member needs to talk to any other.
struct Local {
    settings: Settings,
    dialer: Dialer,
    inbox: PeerInbox,
    runtime: Handle,
    /// Another member has said that this one is none any more.
    removed: CancellationToken,
    /// This member stops.
    closing: CancellationToken,
}

/// This member and those it knows.
struct Group {
    local: Arc<Local>,
    remotes: RwLock<Remotes>,
}

#[derive(Default)]
struct Remotes {
    known: HashMap<u64, Arc<Remote>>,
    /// Those of `known` that are there only because they have called.
    strangers: HashSet<u64>,
    /// Since this process has started.
    removed: HashSet<u64>,
}

impl PeerTransport {
    /// Must be called on the runtime that the connections are to live on.
    pub fn new(
        settings: Settings,
        inbox: PeerInbox,
        snapshots: Option<Box<dyn SnapshotOutbox>>,
    ) -> PeerTransport {
        let dialer = Dialer::new(dial::Settings {
            tls: settings.tls.clone(),
            local_address: settings.local_address,
            connect_limit: settings.election_timeout,
            ping_interval: settings.election_timeout / 2,
            ping_timeout: settings.election_timeout,
        });
        let local = Local {
            settings,
            dialer,
            inbox,
            runtime: Handle::current(),
            removed: CancellationToken::new(),
            closing: CancellationToken::new(),
        };
        PeerTransport {
            group: Arc::new(Group {
                local: Arc::new(local),
                remotes: RwLock::default(),
            }),
            snapshots,
        }
    }

    pub fn peers(&self) -> Peers {
        Peers {
            group: self.group.clone(),
        }
    }
}

impl Transport for PeerTransport {
    fn send(&mut self, messages: Vec<Message>) {
        let local = &self.group.local;
        for message in messages {
            let to = message.to;
            if message.msg_type == MessageType::MsgSnapshot {
                match &mut self.snapshots {
                    Some(snapshots) => snapshots.send(message),
                    None => local.inbox.snapshot_sent(to, false),
                }
                continue;
            }
            match self.group.remotes.read().known.get(&to) {
                Some(remote) => remote.send(local, message),
                // Removed a moment ago, or not known yet.
                None => debug!(to, "a message to nobody"),
            }
        }
    }

    fn set_peers(&mut self, peers: &[Peer]) {
        self.group.set_peers(peers);
    }
}

impl Group {
    fn remote(&self, id: u64) -> Option<Arc<Remote>> {
        self.remotes.read().known.get(&id).cloned()
    }

    fn knows(&self, id: u64) -> bool {
        self.remotes.read().known.contains_key(&id)
    }

    fn is_removed(&self, id: u64) -> bool {
        self.remotes.read().removed.contains(&id)
    }

    fn set_peers(&self, peers: &[Peer]) {
        let mut remotes = self.remotes.write();
        let Remotes {
            known,
            strangers,
            removed,
        } = &mut *remotes;
        let gone: Vec<u64> = known.keys().copied().collect();
        for id in gone {
            let is_peer = peers.iter().any(|peer| peer.id == id);
            // Strangers stay until they are met as members or removed.
            if is_peer || strangers.contains(&id) {
                continue;
            }
            removed.insert(id);
            if let Some(remote) = known.remove(&id) {
                self.local.runtime.spawn(async move {
                    tokio::time::sleep(LINGER).await;
                    remote.close();
                });
            }
        }
        for peer in peers {
            if peer.id == self.local.settings.member_id {
                continue;
            }
            strangers.remove(&peer.id);
            removed.remove(&peer.id);
            let urls = readable(peer.id, &peer.urls);
            match known.get(&peer.id) {
                Some(remote) => remote.set_urls(urls),
                None => {
                    known.insert(peer.id, Remote::open(&self.local, peer.id, urls));
                }
            }
        }
    }

    /// Makes it possible to answer a caller that is not known as a member.
    fn meet(&self, id: u64, urls: &[String]) {
        if urls.is_empty() || self.knows(id) {
            return;
        }
        let mut remotes = self.remotes.write();
        let is_full = remotes.strangers.len() >= MAX_STRANGERS;
        if is_full || remotes.known.contains_key(&id) || remotes.removed.contains(&id) {
            return;
        }
        debug!(id, "a member has called that is not known yet");
        let remote = Remote::open(&self.local, id, readable(id, urls));
        remotes.known.insert(id, remote);
        remotes.strangers.insert(id);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.local.closing.cancel();
    }
}

/// The URLs that can be dialed.
fn readable(id: u64, urls: &[String]) -> Vec<Url> {
    let mut readable = Vec::with_capacity(urls.len());
    for text in urls {
        match text.parse() {
            Ok(url) => readable.push(url),
            Err(error) => warn!(member = format!("{id:x}"), %error, "a member's URL is no good"),
        }
    }
    readable
}
