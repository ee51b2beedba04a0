//! The key space with all its revisions.
//!
//! It owns what a revision is, how keys and their history are laid out in the
//! columns of [`storage`](crate::storage), and every way to read them: the
//! present, an older revision, the events since a revision, counts and hashes.
//! One [`Writer`] changes it, on the apply thread; any number of [`Store`]
//! handles read it, with no lock between them. It leaves to others who may
//! write, in which order, and what leases mean.
//!
//! # One key's life
//!
//! ```text
//! command      put a=x    put a=y    delete a   put a=z    compact 4
//! revision     2          3          4          5          (none)
//!
//! Current  a   x @2       y @3       -          z @5       z @5
//! Deleted  a   -          -          @4         -          -
//! Log      2   x          x          x          x          -
//!          3              y, was x   y, was x   y, was x   -
//!          4                         del, was y del, was y del, was y
//!          5                                    z, was gone@4   z, was gone@4
//! version      1          2          -          1          1
//! created      2          2          -          5          5
//! ```
//!
//! Each column of this picture is the state after the command above it. A put
//! replaces the key's row in `Current` and adds a row to `Log` that holds both
//! the change and what it replaced. A delete moves the key from `Current` to
//! `Deleted`, which says where its history ends; the next put moves it back.
//!
//! - **The present** is `Current`, and nothing else is read for it.
//! - **Revision 3, seen from 5**: `Current` says `a` was last changed at 5,
//!   after 3. Row 5 says it was gone at 4, also after 3. Row 4 says it was `y`,
//!   put at 3: the answer. A key that is gone now is found through `Deleted`.
//! - **The events from 3 on** are the rows 3 to 5 of `Log`, ready to send.
//! - **After compact 4**, revisions below 4 are refused. The rows below 4 go,
//!   nothing points to them; row 4 stays for a watch from 4, without its
//!   `prev_kv`. `Deleted` rows at or before 4 would go too (here the key is back
//!   already). Nothing is rewritten.
//!
//! The row of `Current` under the empty key, which no user key is, holds the
//! store's revision and is written in every batch that changes it. So a single
//! iterator over `Current` sees a revision and the keys that belong to it.
//!
//! # Reading order
//!
//! `range` (which keys), `select` (which of them are returned), the sources
//! they are read from (`current`, `history`, `staged`), `counts`, `writer` and
//! `overlay`, `compaction`, `events`, `hash`. The byte formats are in `record`
//! and `log_row`.

mod buffer;
mod compaction;
mod counts;
mod current;
mod error;
mod events;
mod hash;
mod history;
mod log_row;
mod meta;
mod overlay;
mod past_counts;
pub mod range;
mod record;
mod revision;
mod select;
mod shared;
mod single;
mod source;
mod staged;
mod store;
#[cfg(test)]
mod tests;
mod view;
mod writer;

pub use error::{CompactError, ReadError};
pub use events::{Event, EventKind, EventsPage, RevisionEvents};
pub use hash::HashKv;
pub use meta::put_applied;
pub use range::{KeyRange, RangeEnd};
pub use select::RangeResult;
pub use staged::Staged;
pub use store::Store;
pub(crate) use store::applied_in;
pub use view::{Reads, View};
pub use writer::Writer;
