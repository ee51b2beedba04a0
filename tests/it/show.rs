//! Responses as text. Every field that two correct servers must agree on is
//! printed; what each server chooses for itself is named or checked instead:
//!
//! - a header's IDs and term are left out while they are what they should be
//!   (the same IDs throughout a script, a term that never falls), and spelt out
//!   when not, so `rev=2` says that the header is complete;
//! - a lease ID the server picked is `$lease1`, `$lease2` ... in order of
//!   granting, and can be used under that name in later commands;
//! - the member's own ID is `self`;
//! - what a cluster adds to a server that is alone is checked and left out: a
//!   leader that is the right other one is `self` too, and the other members
//!   are not listed if all of them are there as they should be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use stele::proto::client::etcdserverpb::{
    AlarmMember, DeleteRangeResponse, LeaseTimeToLiveResponse, Member, PutResponse, RangeResponse,
    ResponseHeader, StatusResponse, TxnResponse, WatchResponse, response_op,
};
use stele::proto::client::mvccpb::{Event, KeyValue};
use tonic::Status;

use crate::words::shown;

/// What a script has seen of a server's own choices.
#[derive(Default)]
pub(crate) struct Names {
    leases: BTreeMap<i64, String>,
    pub(crate) member_id: u64,
    cluster_id: u64,
    raft_term: u64,
    cluster: Option<Cluster>,
}

/// Who else is in the cluster, as whoever started it knows.
pub(crate) struct Cluster {
    pub(crate) leader: u64,
    pub(crate) others: BTreeSet<u64>,
}

impl Names {
    /// Tells of the cluster; to be repeated when another member leads.
    pub(crate) fn meet(&mut self, cluster: Option<Cluster>) {
        self.cluster = cluster;
    }

    /// Names a lease whose ID the server picked.
    pub(crate) fn name_lease(&mut self, id: i64) {
        let name = format!("$lease{}", self.leases.len() + 1);
        self.leases.entry(id).or_insert(name);
    }

    pub(crate) fn lease(&self, id: i64) -> String {
        self.leases
            .get(&id)
            .cloned()
            .unwrap_or_else(|| id.to_string())
    }

    /// `$lease1` in a command becomes the ID.
    pub(crate) fn replaced(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // Longest names first: $lease12 before $lease1.
        let mut names: Vec<_> = self.leases.iter().collect();
        names.sort_by_key(|(_, name)| std::cmp::Reverse(name.len()));
        for (id, name) in names {
            text = text.replace(name.as_str(), &id.to_string());
        }
        text
    }

    pub(crate) fn member(&self, id: u64) -> String {
        if id == self.member_id && id != 0 {
            "self".to_owned()
        } else {
            id.to_string()
        }
    }

    fn leader(&self, id: u64) -> String {
        match &self.cluster {
            Some(cluster) if cluster.leader == id => "self".to_owned(),
            // A follower that takes itself for the leader.
            Some(_) => id.to_string(),
            None => self.member(id),
        }
    }

    /// A header that must be complete.
    pub(crate) fn header(&mut self, header: Option<&ResponseHeader>) -> String {
        let Some(header) = header else {
            return "no-header".to_owned();
        };
        if self.cluster_id == 0 {
            self.cluster_id = header.cluster_id;
            self.member_id = header.member_id;
        }
        let mut text = format!("rev={}", header.revision);
        if header.cluster_id == 0 || header.cluster_id != self.cluster_id {
            write!(text, " cluster_id={}", header.cluster_id).expect("a String takes any text");
        }
        if header.member_id == 0 || header.member_id != self.member_id {
            write!(text, " member_id={}", header.member_id).expect("a String takes any text");
        }
        if header.raft_term == 0 || header.raft_term < self.raft_term {
            write!(text, " raft_term={}", header.raft_term).expect("a String takes any text");
        }
        self.raft_term = self.raft_term.max(header.raft_term);
        text
    }

    pub(crate) fn key_value(&self, pair: &KeyValue) -> String {
        let mut text = format!("{} = {}", shown(&pair.key), shown(&pair.value));
        self.revisions(&mut text, pair);
        text
    }

    fn revisions(&self, text: &mut String, pair: &KeyValue) {
        for (name, number) in [
            ("create", pair.create_revision),
            ("mod", pair.mod_revision),
            ("version", pair.version),
        ] {
            if number != 0 {
                write!(text, " {name}={number}").expect("a String takes any text");
            }
        }
        if pair.lease != 0 {
            write!(text, " lease={}", self.lease(pair.lease)).expect("a String takes any text");
        }
    }

    /// `DELETE` shows a value only if there wrongly is one.
    pub(crate) fn event(&self, event: &Event) -> Vec<String> {
        let kind = match event.r#type {
            0 => "PUT".to_owned(),
            1 => "DELETE".to_owned(),
            other => format!("type={other}"),
        };
        let mut lines = Vec::new();
        match &event.kv {
            Some(pair) if event.r#type == 1 && pair.value.is_empty() => {
                let mut text = format!("{kind} {}", shown(&pair.key));
                self.revisions(&mut text, pair);
                lines.push(text);
            }
            Some(pair) => lines.push(format!("{kind} {}", self.key_value(pair))),
            None => lines.push(format!("{kind} no-kv")),
        }
        if let Some(pair) = &event.prev_kv {
            lines.push(format!("  prev {}", self.key_value(pair)));
        }
        lines
    }

    pub(crate) fn watch(&mut self, response: &WatchResponse) -> Vec<String> {
        let mut text = String::new();
        if response.created {
            text.push_str("created ");
        }
        if response.canceled {
            text.push_str("canceled ");
        }
        let header = self.header(response.header.as_ref());
        write!(text, "id={} {header}", response.watch_id).expect("a String takes any text");
        if response.compact_revision != 0 {
            write!(text, " compact_revision={}", response.compact_revision)
                .expect("a String takes any text");
        }
        if !response.cancel_reason.is_empty() {
            write!(text, " reason: {}", response.cancel_reason).expect("a String takes any text");
        }
        if response.fragment {
            text.push_str(" fragment");
        }
        let mut lines = vec![text];
        for event in &response.events {
            lines.extend(indented(self.event(event)));
        }
        lines
    }

    pub(crate) fn status(&mut self, status: &StatusResponse) -> Vec<String> {
        let header = self.header(status.header.as_ref());
        let short_version = status
            .version
            .rsplit_once('.')
            .map_or("", |(short, _)| short)
            .to_owned();
        let claims = [
            ("dbSize > 0", status.db_size > 0),
            (
                "0 < dbSizeInUse <= dbSize",
                0 < status.db_size_in_use && status.db_size_in_use <= status.db_size,
            ),
            ("raftIndex > 0", status.raft_index > 0),
            ("raftAppliedIndex > 0", status.raft_applied_index > 0),
            ("raftTerm > 0", status.raft_term > 0),
        ];
        let mut lines = vec![
            header,
            format!(
                "version {short_version}.x, storageVersion {}",
                status.storage_version
            ),
            format!(
                "leader {}, isLearner {}",
                self.leader(status.leader),
                status.is_learner
            ),
            format!("dbSizeQuota {}", status.db_size_quota),
        ];
        lines.push(match &status.downgrade_info {
            None => "no downgradeInfo".to_owned(),
            Some(info) => format!(
                "downgradeInfo enabled={} targetVersion={:?}",
                info.enabled, info.target_version
            ),
        });
        lines.extend(
            claims
                .iter()
                .map(|(claim, holds)| format!("{claim}: {holds}")),
        );
        let own_id = self.member_id.to_string();
        let errors = status
            .errors
            .iter()
            .map(|error| error.replace(&own_id, "self"));
        let mut errors: Vec<_> = errors
            .map(|error| format!("error: {}", error.trim_end()))
            .collect();
        errors.sort();
        lines.extend(errors);
        lines
    }

    pub(crate) fn alarm(&self, alarm: &AlarmMember) -> String {
        let kind = match alarm.alarm {
            0 => "none".to_owned(),
            1 => "nospace".to_owned(),
            2 => "corrupt".to_owned(),
            other => other.to_string(),
        };
        format!("  {kind} member={}", self.member(alarm.member_id))
    }

    pub(crate) fn members(&self, members: &[Member]) -> Vec<String> {
        let others = self.cluster.iter().flat_map(|cluster| &cluster.others);
        let mut missing: BTreeSet<u64> = others.copied().collect();
        let mut lines = Vec::new();
        for member in members {
            let is_whole = !member.name.is_empty()
                && (member.peer_ur_ls.len(), member.client_ur_ls.len()) == (1, 1)
                && !member.is_learner;
            if !(is_whole && missing.remove(&member.id)) {
                lines.push(format!("  {}", self.cluster_member(member)));
            }
        }
        lines.extend(missing.iter().map(|id| format!("  FAULT: no member {id}")));
        lines
    }

    fn cluster_member(&self, member: &Member) -> String {
        format!(
            "{} name={} peerURLs={} clientURLs={} isLearner={}",
            self.member(member.id),
            member.name,
            member.peer_ur_ls.len(),
            member.client_ur_ls.len(),
            member.is_learner
        )
    }
}

pub(crate) fn range(
    header: &str,
    response: &RangeResponse,
    names: &Names,
    brief: bool,
) -> Vec<String> {
    let more = if response.more { " more" } else { "" };
    let mut lines = vec![format!("{header} count={}{more}", response.count)];
    match (&response.kvs[..], brief) {
        ([first, .., last], true) => {
            let (first, last) = (shown(&first.key), shown(&last.key));
            lines.push(format!("  {} pairs, {first} to {last}", response.kvs.len()));
        }
        (pairs, _) => lines.extend(indented(pairs.iter().map(|pair| names.key_value(pair)))),
    }
    lines
}

pub(crate) fn put(header: &str, response: &PutResponse, names: &Names) -> Vec<String> {
    let mut lines = vec![header.to_owned()];
    lines.extend(
        response
            .prev_kv
            .iter()
            .map(|pair| format!("  prev {}", names.key_value(pair))),
    );
    lines
}

pub(crate) fn delete(header: &str, response: &DeleteRangeResponse, names: &Names) -> Vec<String> {
    let mut lines = vec![format!("{header} deleted={}", response.deleted)];
    lines.extend(
        response
            .prev_kvs
            .iter()
            .map(|pair| format!("  prev {}", names.key_value(pair))),
    );
    lines
}

pub(crate) fn txn(header: &str, response: &TxnResponse, names: &Names) -> Vec<String> {
    let mut lines = vec![format!("{header} succeeded={}", response.succeeded)];
    // More than a few operations are a matter of limits, not of content.
    if response.responses.len() > 20 {
        lines.push(format!("  {} responses", response.responses.len()));
        return lines;
    }
    for operation in &response.responses {
        let shown = match &operation.response {
            Some(response_op::Response::ResponseRange(inner)) => prefixed(
                "get",
                range(&nested(inner.header.as_ref()), inner, names, false),
            ),
            Some(response_op::Response::ResponsePut(inner)) => {
                prefixed("put", put(&nested(inner.header.as_ref()), inner, names))
            }
            Some(response_op::Response::ResponseDeleteRange(inner)) => {
                prefixed("del", delete(&nested(inner.header.as_ref()), inner, names))
            }
            Some(response_op::Response::ResponseTxn(inner)) => {
                prefixed("txn", txn(&nested(inner.header.as_ref()), inner, names))
            }
            None => vec!["no response".to_owned()],
        };
        lines.extend(indented(shown));
    }
    lines
}

/// Header of a response inside a txn: only its revision may be set.
fn nested(header: Option<&ResponseHeader>) -> String {
    match header {
        None => "no-header".to_owned(),
        Some(header) if *header == ResponseHeader::default() => "empty-header".to_owned(),
        Some(header) => {
            let mut text = format!("rev={}", header.revision);
            if header.cluster_id != 0 || header.member_id != 0 || header.raft_term != 0 {
                text.push_str(" with IDs");
            }
            text
        }
    }
}

pub(crate) fn time_to_live(
    header: &str,
    response: &LeaseTimeToLiveResponse,
    names: &Names,
) -> Vec<String> {
    // How long the command before this one took is nobody's promise: up to
    // two seconds less than all counts as all.
    let is_full = (response.granted_ttl - 2..=response.granted_ttl).contains(&response.ttl);
    let remaining = match response.ttl {
        ttl if response.granted_ttl == 0 || !is_full => ttl.to_string(),
        _ => "full".to_owned(),
    };
    let mut keys: Vec<_> = response.keys.iter().map(|key| shown(key)).collect();
    keys.sort();
    let mut text = format!(
        "{header} id={} ttl={remaining} granted={}",
        names.lease(response.id),
        response.granted_ttl
    );
    if !keys.is_empty() {
        write!(text, " keys: {}", keys.join(" ")).expect("a String takes any text");
    }
    vec![text]
}

pub(crate) fn error(status: &Status) -> String {
    format!("error {:?}: {}", status.code(), status.message())
}

fn prefixed(word: &str, mut lines: Vec<String>) -> Vec<String> {
    lines[0] = format!("{word} {}", lines[0]);
    lines
}

fn indented(lines: impl IntoIterator<Item = String>) -> impl Iterator<Item = String> {
    lines.into_iter().map(|line| format!("  {line}"))
}
