//! Free TCP ports for child processes.
//!
//! The numbers lie below the range from which the kernel takes the ports of
//! outgoing connections, so that no client of another test gets one in between.
//! Two test processes start at different places; a collision that happens all
//! the same shows as "address already in use" when the child starts, and whoever
//! starts it then tries other ports.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 20_000;
const COUNT: u32 = 10_000;

/// A port on which nobody listens at the moment. No number is given twice by
/// one process until all have been given.
pub fn free_port() -> u16 {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let offset = start.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset).expect("the range ends below 65536");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}
