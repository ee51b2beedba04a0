//! What the clients ask for, and what each request does to the store.
//!
//! The only model of the server in this test: a map of keys, changed by one
//! request at one revision. It is written from etcd's documented behaviour and
//! shares no code with the server.

use std::collections::BTreeMap;

use bytes::Bytes;
use stele::proto::client::mvccpb::event::EventType;
use stele::proto::client::mvccpb::{Event, KeyValue};

/// The live keys at one revision.
pub type State = BTreeMap<Bytes, KeyValue>;

/// One request and what its client knows of it.
#[derive(Clone, Debug)]
pub struct Operation {
    pub intent: Intent,
    pub answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It took place and made this revision.
    Revision(i64),
    /// It took place without making a revision.
    NoRevision,
    /// No answer came: it took place as a whole, or not at all.
    InDoubt,
}

#[derive(Clone, Debug)]
pub enum Intent {
    /// A put, a delete or a txn of several of them.
    Write(Vec<Change>),
    /// Puts the key if its mod_revision is still `seen` (0: absent).
    Increment {
        key: Bytes,
        seen: i64,
        value: Bytes,
    },
    Grant {
        lease: i64,
    },
    Revoke {
        lease: i64,
    },
}

#[derive(Clone, Debug)]
pub enum Change {
    Put {
        key: Bytes,
        value: Bytes,
        lease: i64,
    },
    /// All keys from `key` up to `end`, or the one key when `end` is empty.
    Delete { key: Bytes, end: Bytes },
}

impl Intent {
    /// Carries the request out at `revision` and returns its events, with the
    /// previous values. None: it changes nothing and makes no revision.
    pub fn apply(&self, state: &mut State, revision: i64) -> Vec<Event> {
        match self {
            Intent::Write(changes) => changes
                .iter()
                .flat_map(|change| change.apply(state, revision))
                .collect(),
            Intent::Increment { key, seen, value } => {
                let current = state.get(key).map_or(0, |kv| kv.mod_revision);
                if current != *seen {
                    return Vec::new();
                }
                vec![put(state, revision, key, value, 0)]
            }
            Intent::Grant { .. } => Vec::new(),
            Intent::Revoke { lease } => {
                let attached = state.values().filter(|kv| kv.lease == *lease);
                let keys: Vec<Bytes> = attached.map(|kv| kv.key.clone()).collect();
                keys.iter()
                    .map(|key| delete(state, revision, key))
                    .collect()
            }
        }
    }
}

impl Change {
    fn apply(&self, state: &mut State, revision: i64) -> Vec<Event> {
        match self {
            Change::Put { key, value, lease } => vec![put(state, revision, key, value, *lease)],
            Change::Delete { key, end } if end.is_empty() => {
                let is_there = state.contains_key(key);
                is_there
                    .then(|| delete(state, revision, key))
                    .into_iter()
                    .collect()
            }
            Change::Delete { key, end } => {
                let keys: Vec<Bytes> = state
                    .range::<Bytes, _>(key..end)
                    .map(|(key, _)| key.clone())
                    .collect();
                keys.iter()
                    .map(|key| delete(state, revision, key))
                    .collect()
            }
        }
    }
}

fn put(state: &mut State, revision: i64, key: &Bytes, value: &Bytes, lease: i64) -> Event {
    let previous = state.get(key).cloned();
    let kv = KeyValue {
        key: key.clone(),
        value: value.clone(),
        create_revision: previous.as_ref().map_or(revision, |kv| kv.create_revision),
        mod_revision: revision,
        version: previous.as_ref().map_or(0, |kv| kv.version) + 1,
        lease,
    };
    state.insert(key.clone(), kv.clone());
    Event {
        r#type: EventType::Put.into(),
        kv: Some(kv),
        prev_kv: previous,
    }
}

fn delete(state: &mut State, revision: i64, key: &Bytes) -> Event {
    let previous = state.remove(key);
    let kv = KeyValue {
        key: key.clone(),
        mod_revision: revision,
        ..KeyValue::default()
    };
    Event {
        r#type: EventType::Delete.into(),
        kv: Some(kv),
        prev_kv: previous,
    }
}
