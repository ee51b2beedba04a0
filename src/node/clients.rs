//! From an open client port to one that is served: the member makes itself
//! known, which takes a majority, and compares its data with the others' if it
//! is to.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch as value;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::chores::check_hash;
use crate::config::Config;
use crate::consensus::{Consensus, ProposeError};
use crate::http::listener::{self, Listener, Services};
use crate::http::{self, Url};
use crate::machine::{Published, command};
use crate::proto::etcdserverpb::Member;
use crate::rpc;

/// How long the others may take to be reached for the first comparison of data.
/// A majority is there by then.
const FIRST_CHECK_LIMIT: Duration = Duration::from_secs(2);

/// The client ports, open but not served.
pub(super) struct Clients {
    /// What is to be compared before they are.
    pub(super) check_first: Option<check_hash::Subject>,
    pub(super) unfit: CancellationToken,
    pub(super) client: Vec<Listener>,
    pub(super) client_http: Vec<Listener>,
    /// Of `client` and `client_http`.
    pub(super) services: (Services<rpc::Services>, Option<Services<http::Router>>),
    pub(super) shutdown: CancellationToken,
}

impl Clients {
    /// Makes this member known, then serves until the shutdown.
    pub(super) async fn serve(
        self,
        config: Config,
        consensus: Consensus,
        published: Arc<Published>,
        member_id: u64,
        ready: value::Sender<bool>,
    ) {
        let shutdown = self.shutdown.clone();
        let publishing = publish(&consensus, &config, member_id, &published);
        tokio::select! {
            outcome = publishing => if outcome.is_err() {
                return;
            },
            () = shutdown.cancelled() => return,
        }
        if let Some(subject) = &self.check_first
            && let Err(error) = check_hash::check_first(subject, FIRST_CHECK_LIMIT).await
        {
            error!(%error, "clients are not served");
            self.unfit.cancel();
            return;
        }
        let serving = self.client.iter().flat_map(Listener::urls);
        let serving: Vec<&str> = serving.map(Url::as_str).collect();
        info!(urls = serving.join(","), "ready to serve client requests");
        ready.send_replace(true);
        let (services, http_services) = self.services;
        let Config {
            tls, connections, ..
        } = config;
        let clients = listener::serve(
            self.client,
            services,
            tls.clone(),
            connections.clone(),
            shutdown.clone(),
        );
        match http_services {
            None => clients.await,
            Some(services) => {
                let http = listener::serve(self.client_http, services, tls, connections, shutdown);
                tokio::join!(clients, http);
            }
        }
    }
}

/// Tells name and client URLs of this member (CLU-14), however long it takes:
/// until then it knows of no majority, and has nothing to serve. On a single
/// member the answer also says that the log has been replayed.
async fn publish(
    consensus: &Consensus,
    config: &Config,
    member_id: u64,
    published: &Published,
) -> Result<(), ProposeError> {
    let client_urls = config.advertise_client_urls.iter();
    let member = Member {
        id: member_id,
        name: config.name.clone(),
        client_ur_ls: client_urls.map(ToString::to_string).collect(),
        ..Member::default()
    };
    loop {
        let outcome = if is_published(&member, published) {
            // A restart. A proposal would do as well, but nobody answers one
            // that comes back as part of a received state.
            consensus.read_barrier().await
        } else {
            let request = command::Publish {
                member: Some(member.clone()),
            };
            let seen = async {
                while !is_published(&member, published) {
                    tokio::time::sleep(PUBLISH_RETRY).await;
                }
            };
            tokio::select! {
                outcome = consensus.propose(request) => outcome,
                // In the state that a member which joins was sent.
                () = seen => Ok(()),
            }
        };
        match outcome {
            Ok(()) if is_published(&member, published) => return Ok(()),
            // It was applied before this member was one.
            Ok(()) => {}
            Err(ProposeError::Stopped) => return Err(ProposeError::Stopped),
            Err(error) => warn!(%error, "this member is not known to its cluster yet, will retry"),
        }
        tokio::time::sleep(PUBLISH_RETRY).await;
    }
}

fn is_published(member: &Member, published: &Published) -> bool {
    let members = published.members();
    let is_same = |each: &Member| {
        (each.id, &each.name, &each.client_ur_ls) == (member.id, &member.name, &member.client_ur_ls)
    };
    members.iter().any(is_same)
}

/// How long to wait before publishing, or looking, again.
const PUBLISH_RETRY: Duration = Duration::from_millis(100);
