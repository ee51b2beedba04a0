//! The generated protocol types under short names: a module tree that
//! `build.rs` fills, and how its services read and write messages ([`codec`]).
//!
//! Two sets of the same messages exist. The one at this level is the server's:
//! four fields that carry stored records (`RangeResponse.kvs`,
//! `PutResponse.prev_kv`, `DeleteRangeResponse.prev_kvs`,
//! `WatchResponse.events`) are `Bytes` there, holding the encoded message, so
//! that a response is put together without decoding what is stored. An empty
//! `prev_kv` is an absent one, since no record encodes to nothing. [`client`]
//! holds the plain messages and the clients.

pub mod codec;
mod misfits;

/// Includes one generated package from the named set.
macro_rules! package {
    ($set:literal, $package:literal) => {
        include!(concat!(env!("OUT_DIR"), "/", $set, "/", $package, ".rs"));
    };
}

/// Keys, values and events: the stored format.
#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
pub mod mvccpb {
    package!("server", "mvccpb");
}

/// Users, roles and permissions.
#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
pub mod authpb {
    package!("server", "authpb");
}

/// The main API: KV, Watch, Lease, Cluster, Maintenance, Auth.
#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
pub mod etcdserverpb {
    package!("server", "etcdserverpb");
}

/// The lock service.
#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
pub mod v3lockpb {
    package!("server", "v3lockpb");
}

/// The election service.
#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
pub mod v3electionpb {
    package!("server", "v3electionpb");
}

/// Our own log entry.
#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
pub mod command {
    package!("server", "stele");
}

/// What members say to each other: messages, client and server trait.
#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
pub mod peer {
    package!("peer", "stele.peer");
}

/// gRPC's own health service: messages, client and server trait.
#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
pub mod health {
    package!("health", "grpc.health.v1");
}

/// The same API as a client sees it: plain messages and generated clients.
#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
pub mod client {
    pub mod mvccpb {
        package!("client", "mvccpb");
    }
    pub mod authpb {
        package!("client", "authpb");
    }
    pub mod etcdserverpb {
        package!("client", "etcdserverpb");
    }
    pub mod v3lockpb {
        package!("client", "v3lockpb");
    }
    pub mod v3electionpb {
        package!("client", "v3electionpb");
    }
}

/// The public descriptors (an encoded `FileDescriptorSet`), for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Those of the health service.
pub const HEALTH_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/health.bin"));
