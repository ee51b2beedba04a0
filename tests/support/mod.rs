//! What the test binaries share: servers as child processes, clients, seeds.
//!
//! Knows nothing of any single test. Every binary takes this folder in as a
//! module of its own and uses a part of it, hence the `allow`.
#![allow(dead_code)]

pub mod client;
pub mod operation;
pub mod ports;
pub mod process;
pub mod read_back;
pub mod requests;
pub mod settings;
