//! Opening the data directory, and what is done when it is empty: founding a
//! cluster, alone or with others, or joining one.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::StartError;
use super::settings;
use crate::config::{self, Config, Joining, Known};
use crate::consensus;
use crate::machine::Machine;
use crate::machine::members::{Identity, Start};
use crate::metrics;
use crate::mvcc::Store;
use crate::proto::etcdserverpb::Member;
use crate::rpc::SERVER_VERSION;
use crate::storage::data_dir::DataDir;
use crate::storage::{Engine, StorageError};

/// The cluster version as metrics name it.
const CLUSTER_VERSION_LABEL: &str = "3.7";

/// How long the founders of a cluster are asked whether it is there already.
/// Most of the time none of them has started yet.
const FOUNDERS_LIMIT: Duration = Duration::from_secs(3);

/// What opening the data directory yields.
pub(super) struct Opened {
    pub(super) data_dir: DataDir,
    pub(super) engine: Arc<Engine>,
    pub(super) identity: Identity,
    pub(super) machine: Machine,
    pub(super) store: Store,
}

/// Opens what is in the data directory; one that is empty becomes a member's.
pub(super) async fn open(config: &Config, data_dir: DataDir) -> Result<Opened, StartError> {
    let opening = config.clone();
    let opened = tokio::task::spawn_blocking(move || open_engine(&opening, data_dir)).await??;
    let (data_dir, engine, identity) = opened;
    let identity = match identity {
        Some(identity) => identity,
        None => begin(config, engine.clone()).await?,
    };
    let directory = config.data_dir.clone();
    let opening = move || -> Result<Opened, StartError> {
        let (machine, store) = Machine::open(engine.clone())?;
        metrics::set_identity(SERVER_VERSION, CLUSTER_VERSION_LABEL, identity.member_id);
        info!(
            data_dir = %directory.display(),
            cluster_id = format!("{:x}", identity.cluster_id),
            member_id = format!("{:x}", identity.member_id),
            revision = store.revision(),
            "opened the store"
        );
        Ok(Opened {
            data_dir,
            engine,
            identity,
            machine,
            store,
        })
    };
    tokio::task::spawn_blocking(opening).await?
}

type OpenedEngine = (DataDir, Arc<Engine>, Option<Identity>);

fn open_engine(config: &Config, data_dir: DataDir) -> Result<OpenedEngine, StartError> {
    let settings = settings::storage(config);
    let engine = Arc::new(Engine::open(&data_dir.state_dir(), &settings)?);
    let identity = Identity::load(&engine)?;
    Ok((data_dir, engine, identity))
}

/// Makes a member of an empty directory.
async fn begin(config: &Config, engine: Arc<Engine>) -> Result<Identity, StartError> {
    match config.initial.start(&config.name)? {
        config::Start::New(bootstrap) => {
            check_founders(config, &bootstrap).await?;
            let identity = Identity {
                cluster_id: bootstrap.cluster_id,
                member_id: bootstrap.member_id,
            };
            let members = bootstrap.members.iter().map(member).collect();
            write(engine, identity, members, Start::NewCluster).await
        }
        config::Start::Existing(joining) => {
            let (identity, members) = join(config, &joining).await?;
            write(engine, identity, members, Start::Joining).await
        }
    }
}

/// Asks the other founders, as far as they can be reached, whether this member
/// has been there before.
async fn check_founders(config: &Config, new: &config::Bootstrap) -> Result<(), StartError> {
    let urls = new.other_urls();
    if urls.is_empty() {
        return Ok(());
    }
    let tls = config.peer_tls.dial.as_ref();
    let asking = consensus::members_of(&urls, tls, config.peer_local_address);
    match tokio::time::timeout(FOUNDERS_LIMIT, asking).await {
        Ok(Ok((cluster_id, members))) => {
            let members: Vec<Known> = members.into_iter().map(known).collect();
            Ok(new.check_not_started(cluster_id, &members)?)
        }
        // They start as this one does.
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

async fn join(config: &Config, joining: &Joining) -> Result<(Identity, Vec<Member>), StartError> {
    let urls = joining.other_urls();
    let tls = config.peer_tls.dial.as_ref();
    let asking = consensus::members_of(&urls, tls, config.peer_local_address);
    let (cluster_id, members) = asking.await.map_err(|reason| {
        warn!(reason, "no member of the cluster has answered");
        StartError::NoCluster
    })?;
    let existing: Vec<Known> = members.iter().cloned().map(known).collect();
    let member_id = joining.settle(&existing)?;
    let identity = Identity {
        cluster_id,
        member_id,
    };
    Ok((identity, members))
}

async fn write(
    engine: Arc<Engine>,
    identity: Identity,
    members: Vec<Member>,
    start: Start,
) -> Result<Identity, StartError> {
    let writing = move || -> Result<Identity, StorageError> {
        identity.bootstrap(&engine, &members, start)?;
        Ok(identity)
    };
    Ok(tokio::task::spawn_blocking(writing).await??)
}

fn member(known: &Known) -> Member {
    Member {
        id: known.id,
        name: known.name.clone(),
        peer_ur_ls: known.peer_urls.clone(),
        ..Member::default()
    }
}

fn known(member: Member) -> Known {
    Known {
        id: member.id,
        name: member.name,
        peer_urls: member.peer_ur_ls,
        client_urls: member.client_ur_ls,
    }
}
