//! Watchers: who wants to hear of which keys, and the delivery of changes.
//!
//! ```text
//!  apply thread                          one stream (gRPC)
//!      |                                      ^
//!      | publish(revisions)                   | responses, in order
//!      v                                      |
//!  [state: watchers by key, ring]  ------> [outbox: bounded queue]
//!      |        ^                             ^
//!      | behind | caught up                   | whole pages
//!      v        |                             |
//!  [catch-up thread] <--- ring, or the store's log below it
//! ```
//!
//! A watcher is either synced, and gets every revision the moment it is
//! published, or behind, and is brought up from the ring or the store by a
//! thread of its own. What is promised, whatever the phases a watcher goes
//! through: events in order of (revision, position), none missing, none twice,
//! those of one revision in one response; progress at revision r only after
//! every event up to r. A stream costs memory bounded by its queue. The
//! writer never waits for a reader, and readers do not wait for each other.
//!
//! Left to others: encoding (events arrive as encoded bytes, shared by all who
//! get them), response headers, fragments and timers (`rpc::watch`).

mod catch_up;
mod history;
mod hub;
mod outbox;
mod ranges;
mod ring;
mod spans;
mod state;
mod watcher;

#[cfg(test)]
mod tests;

#[doc(hidden)]
pub use catch_up::Sweep;
pub use history::History;
pub use hub::{Hub, Settings, StreamHandle};
pub use outbox::{End, Responses};
pub use watcher::{Body, CreateError, CreateRequest, Filters, NO_WATCHER, Response};
