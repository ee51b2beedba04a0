//! The key space as a plain map of histories, straight from the statements in
//! behaviour.md and with no care for speed.

use crate::mvcc::{EventKind, RangeResult, ReadError, range};
use crate::proto::client::mvccpb::{Event, event::EventType};
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::mvccpb::KeyValue;
use bytes::Bytes;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) revision: i64,
    pub(super) compacted_revision: i64,
    /// Every change ever, per key in order. `None` is a deletion.
    histories: BTreeMap<Bytes, Vec<(i64, Option<KeyValue>)>>,
    /// Every change ever in order: revision, sub, key, what it became.
    log: Vec<(i64, i64, Bytes, Option<KeyValue>)>,
}

impl Model {
    pub(super) fn new() -> Model {
        Model {
            revision: 1,
            compacted_revision: -1,
            histories: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    pub(super) fn get(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        let history = self.histories.get(key)?;
        history
            .iter()
            .rev()
            .find(|(at, _)| *at <= revision)?
            .1
            .as_ref()
    }

    /// A change within the command that makes revision `main`.
    fn change(&mut self, main: i64, key: &Bytes, kv: Option<KeyValue>) {
        let sub = self.log.iter().filter(|(at, ..)| *at == main).count() as i64;
        self.log.push((main, sub, key.clone(), kv.clone()));
        self.histories
            .entry(key.clone())
            .or_default()
            .push((main, kv));
    }

    pub(super) fn put(&mut self, main: i64, key: &Bytes, value: &Bytes, lease: i64) {
        let old = self.get(key, main);
        let kv = KeyValue {
            key: key.clone(),
            create_revision: old.map_or(main, |old| old.create_revision),
            mod_revision: main,
            version: old.map_or(0, |old| old.version) + 1,
            value: value.clone(),
            lease,
        };
        self.change(main, key, Some(kv));
    }

    pub(super) fn delete_range(
        &mut self,
        main: i64,
        key: &[u8],
        range_end: &[u8],
    ) -> Vec<KeyValue> {
        let deleted = self.live(key, range_end, main);
        for kv in &deleted {
            self.change(main, &kv.key, None);
        }
        deleted
    }

    pub(super) fn live(&self, key: &[u8], range_end: &[u8], revision: i64) -> Vec<KeyValue> {
        let in_range = self
            .histories
            .keys()
            .filter(|probe| range::covers(key, range_end, probe));
        in_range
            .filter_map(|key| self.get(key, revision))
            .cloned()
            .collect()
    }

    /// The answer to a range request whose header shows `revision`.
    pub(super) fn range(
        &self,
        request: &RangeRequest,
        revision: i64,
    ) -> Result<RangeResult, ReadError> {
        let at = if request.revision <= 0 {
            revision
        } else {
            request.revision
        };
        if at > revision {
            return Err(ReadError::FutureRevision);
        }
        if request.revision > 0 && at < self.compacted_revision {
            return Err(ReadError::Compacted);
        }
        let mut kvs = self.live(&request.key, &request.range_end, at);
        let count = kvs.len() as i64;
        if request.count_only {
            return Ok(RangeResult {
                kvs: Vec::new(),
                more: false,
                count,
                revision,
            });
        }
        let within = |value, min, max| (min == 0 || value >= min) && (max == 0 || value <= max);
        kvs.retain(|kv| {
            within(
                kv.mod_revision,
                request.min_mod_revision,
                request.max_mod_revision,
            ) && within(
                kv.create_revision,
                request.min_create_revision,
                request.max_create_revision,
            )
        });
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        let limit = if request.limit > 0 {
            request.limit as usize
        } else {
            usize::MAX
        };
        let (order, target) = (request.sort_order, request.sort_target);
        if order == 0 && target != 0 && filters == [0; 4] {
            // RNG-15: the limit comes first, with one key too many.
            kvs.truncate(limit.saturating_add(1));
        }
        let more = kvs.len() > limit;
        let number = |kv: &KeyValue| match target {
            1 => kv.version,
            2 => kv.create_revision,
            3 => kv.mod_revision,
            _ => 0,
        };
        let text = |kv: &KeyValue| match target {
            0 => kv.key.clone(),
            4 => kv.value.clone(),
            _ => Bytes::new(),
        };
        kvs.sort_by(|a, b| {
            let ordering = (number(a), text(a)).cmp(&(number(b), text(b)));
            if order == 2 {
                ordering.reverse()
            } else {
                ordering
            }
        });
        kvs.truncate(limit);
        if request.keys_only {
            for kv in &mut kvs {
                kv.value = Bytes::new();
                if target != 4 {
                    kv.lease = 0;
                }
            }
        }
        let kvs = kvs.iter().map(|kv| kv.encode_to_vec().into()).collect();
        Ok(RangeResult {
            kvs,
            more,
            count,
            revision,
        })
    }

    /// The events of each revision from `from` on, as a watcher with
    /// `prev_kv` gets them.
    pub(super) fn events(&self, from: i64) -> BTreeMap<i64, Vec<(EventKind, Event)>> {
        let mut revisions = BTreeMap::<i64, Vec<_>>::new();
        for (main, _, key, kv) in &self.log {
            if *main < from {
                continue;
            }
            let is_create = kv.as_ref().is_some_and(|kv| kv.create_revision == *main);
            let is_prev_readable = *main > self.compacted_revision;
            let prev = self
                .get(key, main - 1)
                .filter(|_| !is_create && is_prev_readable);
            let tombstone = || KeyValue {
                key: key.clone(),
                mod_revision: *main,
                ..KeyValue::default()
            };
            let (kind, event_type) = match kv {
                Some(_) => (EventKind::Put, EventType::Put),
                None => (EventKind::Delete, EventType::Delete),
            };
            let event = Event {
                r#type: event_type.into(),
                kv: Some(plain(kv.as_ref().unwrap_or(&tombstone()))),
                prev_kv: prev.map(plain),
            };
            revisions.entry(*main).or_default().push((kind, event));
        }
        revisions
    }

    /// MNT-20 and MNT-21, over every entry etcd would have kept.
    pub(super) fn hash_kv(&self, revision: i64) -> u32 {
        let compacted = self.compacted_revision;
        let newest = |at: i64| -> BTreeSet<(i64, i64)> {
            let mut newest = BTreeMap::new();
            for (main, sub, key, kv) in self.log.iter().filter(|(main, ..)| *main <= at) {
                newest.insert(key, (*main, *sub, kv.is_some()));
            }
            newest
                .values()
                .filter(|(.., is_put)| *is_put)
                .map(|&(main, sub, _)| (main, sub))
                .collect()
        };
        let (present, kept) = (newest(compacted), newest(revision));
        let mut hash = crc32c::crc32c(b"key");
        for (main, sub, key, kv) in self.log.iter().filter(|(main, ..)| *main <= revision) {
            if *main <= compacted {
                let is_kept = kept.is_empty() || kept.contains(&(*main, *sub));
                if !present.contains(&(*main, *sub)) || !is_kept {
                    continue;
                }
            }
            let mut entry = [&main.to_be_bytes()[..], b"_", &sub.to_be_bytes()].concat();
            if kv.is_none() {
                entry.push(b't');
            }
            hash = crc32c::crc32c_append(hash, &entry);
            let tombstone = KeyValue {
                key: key.clone(),
                ..KeyValue::default()
            };
            hash = crc32c::crc32c_append(hash, &kv.as_ref().unwrap_or(&tombstone).encode_to_vec());
        }
        hash
    }
}

/// The same pair as the client's message.
fn plain(kv: &KeyValue) -> crate::proto::client::mvccpb::KeyValue {
    Message::decode(kv.encode_to_vec().as_slice()).unwrap()
}
