//! What must hold, and what was seen.
//!
//! Every member tells what it has committed, and clients tell what they were
//! answered. Revisions put all writes into one order, so linearizability is
//! checked exactly: each answer must be what that order says at its revision,
//! and no later operation may see less than an earlier one has shown.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use prost::Message as _;
use stele::machine::{Effects, LeaseChange};
use stele::mvcc::{EventKind, RevisionEvents};
use stele::proto::mvccpb;

use super::clock::SECOND;

#[derive(Default)]
pub struct Oracle {
    /// The first violation.
    pub violation: Option<String>,
    /// All revisions from 2 on, as the first member to commit each has it.
    pub revisions: Vec<RevisionEvents>,
    keys: HashMap<Bytes, Vec<(i64, Option<mvccpb::KeyValue>)>>,
    /// The revision that wrote a value; each is written once.
    values: HashMap<Bytes, i64>,
    /// Values of writes that were refused for good.
    refused: HashSet<Bytes>,
    /// The highest revision that an operation has shown that was not
    /// serializable.
    pub shown: i64,
    /// The highest revision anybody has asked to compact to.
    pub compacted: i64,
    pub leases: BTreeMap<i64, Lease>,
    /// What to report of a run.
    pub counts: Counts,
}

#[derive(Default, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub writes: u64,
    pub reads: u64,
    pub unknown: u64,
    pub renewals: u64,
    pub expiries: u64,
    pub reloads: u64,
    pub watched: u64,
    pub progress: u64,
    pub crashes: u64,
    pub conf_changes: u64,
    pub messages: u64,
    /// The longest time, in milliseconds, until all served again.
    pub slowest_recovery: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        let pairs = [
            (&mut self.writes, other.writes),
            (&mut self.reads, other.reads),
            (&mut self.unknown, other.unknown),
            (&mut self.renewals, other.renewals),
            (&mut self.expiries, other.expiries),
            (&mut self.reloads, other.reloads),
            (&mut self.watched, other.watched),
            (&mut self.progress, other.progress),
            (&mut self.crashes, other.crashes),
            (&mut self.conf_changes, other.conf_changes),
            (&mut self.messages, other.messages),
        ];
        self.slowest_recovery = self.slowest_recovery.max(other.slowest_recovery);
        for (sum, number) in pairs {
            *sum += number;
        }
    }
}

/// What is known of a lease.
#[derive(Default)]
pub struct Lease {
    /// It may not expire before.
    promised_until: u64,
    /// A client has asked to revoke it, so it may end at any time.
    pub is_revoking: bool,
    /// When a member first had it ended.
    ended_at: Option<u64>,
}

impl Oracle {
    pub fn fail(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.violation.get_or_insert(what);
    }

    pub fn last_revision(&self) -> i64 {
        self.revisions.len() as i64 + 1
    }

    /// A member has committed this.
    pub fn committed(&mut self, member: u64, now: u64, effects: &Effects) {
        if effects.reloaded.is_some() {
            self.counts.reloads += 1;
        }
        for revision in &effects.events {
            self.published(member, revision);
        }
        for change in &effects.leases {
            if let LeaseChange::Revoked { id } = *change {
                self.lease_ended(id, now);
            }
        }
    }

    fn published(&mut self, member: u64, revision: &RevisionEvents) {
        let at = (revision.revision - 2) as usize;
        if let Some(known) = self.revisions.get(at) {
            if known != revision {
                let what = if revision.revision <= self.shown {
                    "has lost what clients were shown"
                } else {
                    "has another history"
                };
                let text = format!(
                    "member {member} {what}: {}, not {}",
                    show(revision),
                    show(known)
                );
                self.fail(text);
            }
            return;
        }
        if at != self.revisions.len() {
            let last = self.last_revision();
            self.fail(format!(
                "member {member} has revision {}, but nobody one after {last}",
                revision.revision
            ));
            return;
        }
        for event in &revision.events {
            let decoded = mvccpb::Event::decode(event.with_prev()).unwrap();
            let kv = decoded.kv.unwrap_or_default();
            let before = self.at(&kv.key, revision.revision - 1);
            if decoded.prev_kv.as_ref() != before {
                self.fail(format!(
                    "prev_kv of {} differs: {:?}, not {before:?}",
                    show(revision),
                    decoded.prev_kv
                ));
            }
            let is_put = event.kind == EventKind::Put;
            if is_put {
                if let Some(first) = self.values.insert(kv.value.clone(), revision.revision) {
                    let text = format!("{} was written at {first} already", show(revision));
                    self.fail(text);
                }
                if self.refused.contains(&kv.value) {
                    self.fail(format!("{} was refused", show(revision)));
                }
            }
            let record = is_put.then(|| kv.clone());
            let history = self.keys.entry(kv.key).or_default();
            history.push((revision.revision, record));
        }
        self.revisions.push(revision.clone());
    }

    /// A key as it was at a revision.
    pub fn at(&self, key: &[u8], revision: i64) -> Option<&mvccpb::KeyValue> {
        let history = self.keys.get(key)?;
        let after = history.partition_point(|(at, _)| *at <= revision);
        history[..after].last()?.1.as_ref()
    }

    /// An operation has shown this revision to its client.
    pub fn showed(&mut self, revision: i64) {
        if revision > self.last_revision() {
            let last = self.last_revision();
            self.fail(format!(
                "an answer of revision {revision}, where nobody has one after {last}"
            ));
        }
        self.shown = self.shown.max(revision);
    }

    /// A write was acknowledged: its revision holds just these values (`None`
    /// of a deletion), and comes after all shown before the write.
    pub fn wrote(&mut self, revision: i64, floor: i64, changes: &[(Bytes, Option<Bytes>)]) {
        self.counts.writes += 1;
        self.showed(revision);
        if revision <= floor {
            self.fail(format!(
                "a write at {revision}, after {floor} had been shown"
            ));
        }
        let Some(found) = self.revisions.get((revision - 2) as usize) else {
            return;
        };
        let found_changes: Vec<_> = found
            .events
            .iter()
            .map(|event| {
                let decoded = mvccpb::Event::decode(event.without_prev()).unwrap();
                let value = decoded.kv.unwrap_or_default().value;
                let is_put = event.kind == EventKind::Put;
                (event.key.clone(), is_put.then_some(value))
            })
            .collect();
        if found_changes != changes {
            let text = format!("{changes:?} was acknowledged as {}", show(found));
            self.fail(text);
        }
    }

    /// A write was refused for good.
    pub fn refused(&mut self, value: Bytes) {
        if let Some(revision) = self.values.get(&value) {
            let text = format!("{value:?} was refused, and written at {revision}");
            self.fail(text);
        }
        self.refused.insert(value);
    }

    /// A read has shown this of a key, at a revision of the past or the one it
    /// names in its header.
    pub fn read(&mut self, key: &[u8], revision: i64, found: Option<&Bytes>) {
        self.counts.reads += 1;
        let expected = self.at(key, revision).cloned();
        let found = found.map(|kv| mvccpb::KeyValue::decode(kv.clone()).unwrap());
        if found != expected {
            self.fail(format!(
                "a read of {key:?} at {revision} shows {found:?}, not {expected:?}"
            ));
        }
    }

    /// No less than what was shown before the operation began.
    pub fn sees(&mut self, what: &str, revision: i64, floor: i64) {
        if revision < floor {
            self.fail(format!(
                "{what} shows revision {revision}, after {floor} had been shown"
            ));
        }
        self.showed(revision);
    }

    fn lease_ended(&mut self, id: i64, now: u64) {
        let lease = self.leases.entry(id).or_default();
        if lease.ended_at.is_some() {
            return;
        }
        lease.ended_at = Some(now);
        let is_revoking = lease.is_revoking;
        let promised = lease.promised_until;
        let last = self.last_revision();
        let mut keys = self.keys.keys();
        let left = keys.find(|key| self.at(key, last).is_some_and(|kv| kv.lease == id));
        if let Some(key) = left {
            let text = format!("lease {id} has ended, and {key:?} is left at {last}");
            self.fail(text);
        }
        if is_revoking {
            return;
        }
        self.counts.expiries += 1;
        if now < promised {
            self.fail(format!(
                "lease {id} has expired at {now}, promised until {promised}"
            ));
        }
    }

    /// A grant or renewal, asked for at `began`, was acknowledged.
    pub fn lease_promised(&mut self, id: i64, began: u64, ttl_seconds: i64) {
        let lease = self.leases.entry(id).or_default();
        let until = began + ttl_seconds as u64 * SECOND;
        lease.promised_until = lease.promised_until.max(until);
        let Some(ended) = lease.ended_at else { return };
        let is_revoking = lease.is_revoking;
        if ended < began || (!is_revoking && ended < until) {
            self.fail(format!(
                "lease {id} was renewed from {began} to {until}, but had ended at {ended}"
            ));
        }
    }

    /// The answer to a renewal asked for at `began` was that the lease is gone.
    pub fn lease_gone(&mut self, id: i64) {
        let lease = self.leases.entry(id).or_default();
        if lease.ended_at.is_none() && !lease.is_revoking && lease.promised_until > 0 {
            self.fail(format!(
                "lease {id} is called gone, and nobody has ended it"
            ));
        }
    }
}

/// A revision for people.
pub fn show(revision: &RevisionEvents) -> String {
    let mut text = format!("revision {}:", revision.revision);
    for event in &revision.events {
        let decoded = mvccpb::Event::decode(event.without_prev()).unwrap();
        let value = decoded.kv.unwrap_or_default().value;
        text += &format!(" {:?} {:?} {value:?}", event.kind, event.key);
    }
    text
}
