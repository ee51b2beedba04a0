//! Compiles `proto/` with protox, so that no protoc has to be installed.
//!
//! Five things come out of one set of files:
//! - `descriptors.bin`: the public descriptors as written, for reflection;
//! - `server/`: messages and server traits, where the fields of [`SPLICED`]
//!   are declared `bytes`. On the wire a message field and a bytes field are
//!   the same, so a stored record goes into a response without being decoded;
//! - `client/`: plain messages and clients, for tests and the JSON gateway;
//! - `peer/`: both ends of what members say to each other;
//! - `health/` and `health.bin`: gRPC's own health service.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message;
use prost_types::FileDescriptorSet;
use prost_types::field_descriptor_proto::Type;

/// The files clients may know about.
const PUBLIC: [&str; 5] = [
    "mvccpb/kv.proto",
    "authpb/auth.proto",
    "etcdserverpb/rpc.proto",
    "v3lockpb/v3lock.proto",
    "v3electionpb/v3election.proto",
];

/// The log entry. It carries requests only, so it is never touched by the
/// splicing below.
const PRIVATE: &str = "stele/command.proto";

/// What members say to each other. Its messages of etcd are the server's.
const PEER: &str = "stele/peer.proto";

/// gRPC's own service, which is no part of etcd's API.
const HEALTH: &str = "grpc/health/v1/health.proto";

/// Message fields that the server fills with already encoded messages.
const SPLICED: [(&str, &str); 4] = [
    ("RangeResponse", "kvs"),
    ("PutResponse", "prev_kv"),
    ("DeleteRangeResponse", "prev_kvs"),
    ("WatchResponse", "events"),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto");

    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let public = compile(&PUBLIC)?;
    fs::write(out_dir.join("descriptors.bin"), public.encode_to_vec())?;

    let mut server = compile(&[PUBLIC.as_slice(), &[PRIVATE]].concat())?;
    splice(&mut server)?;
    generate(server, &out_dir.join("server"), Side::Server)?;
    generate(public, &out_dir.join("client"), Side::Client)?;
    generate(compile(&[PEER])?, &out_dir.join("peer"), Side::Both)?;
    let health = compile(&[HEALTH])?;
    fs::write(out_dir.join("health.bin"), health.encode_to_vec())?;
    generate(health, &out_dir.join("health"), Side::Both)
}

fn compile(files: &[&str]) -> Result<FileDescriptorSet, Box<dyn Error>> {
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(files)?;
    Ok(compiler.file_descriptor_set())
}

/// Redeclares every field of [`SPLICED`] as `bytes`; fails when one is missing.
fn splice(set: &mut FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    for (message_name, field_name) in SPLICED {
        let field = set
            .file
            .iter_mut()
            .filter(|file| file.package() == "etcdserverpb")
            .flat_map(|file| &mut file.message_type)
            .filter(|message| message.name() == message_name)
            .flat_map(|message| &mut message.field)
            .find(|field| field.name() == field_name)
            .ok_or_else(|| format!("{message_name}.{field_name} is not declared"))?;
        field.set_type(Type::Bytes);
        field.type_name = None;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Server,
    Client,
    /// Messages of etcd's packages are the server's.
    Both,
}

fn generate(set: FileDescriptorSet, dir: &Path, side: Side) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(dir)?;
    let mut builder = tonic_prost_build::configure()
        .build_server(side != Side::Client)
        .build_client(side != Side::Server)
        .build_transport(side == Side::Client)
        .bytes(".")
        .out_dir(dir);
    if side != Side::Client {
        builder = builder.codec_path("crate::proto::codec::Codec");
    }
    if side == Side::Both {
        for package in ["authpb", "etcdserverpb", "mvccpb"] {
            builder =
                builder.extern_path(format!(".{package}"), format!("crate::proto::{package}"));
        }
    }
    // By its name a message's fields are looked up, when one does not fit.
    let mut config = prost_build::Config::new();
    config.enable_type_names();
    builder.compile_fds_with_config(set, config)?;
    Ok(())
}
