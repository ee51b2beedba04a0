//! The stream of random requests: a function of the seed and of the answers.
//!
//! Everything is drawn from one random number generator, and what is known of
//! the store ([`Model`]) follows from the reference's answers. Neither depends
//! on timing, so a seed gives the same stream again.
//!
//! What is left out, because etcd crashes on it, or because it answers
//! differently each time:
//! - txns that [`may_crash_etcd`](txn::may_crash_etcd);
//! - leases with an id of the server's choice;
//! - HashKV at the revision of a compaction (MNT-23: remembered for the last ten,
//!   with the compacted revision of before, as soon as the background work is
//!   done), and HashKV while a compaction may still be removing entries (where
//!   no key is live, MNT-21, etcd hashes what it has not removed yet);
//! - RangeStreams of [`is_unsteady_stream`];
//! - an explicit watch id of -1, which is also the id of progress answers.

mod keys;
mod txn;
mod wire;

use std::collections::{BTreeSet, HashSet, VecDeque};

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use stele::proto::client::etcdserverpb::alarm_request::AlarmAction;
use stele::proto::client::etcdserverpb::range_request::SortTarget;
use stele::proto::client::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, HashKvRequest,
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, PutRequest, RangeRequest, WatchCreateRequest,
};

use self::keys::Keys;
use crate::outcome::Outcome;
use crate::request::Request;

/// How many txns a chain may nest.
const DEEPEST_CHAIN: usize = 48;

/// Few ids, so that grants, revocations and puts meet.
const LEASE_IDS: [i64; 9] = [1, 2, 3, 4, 5, 77, -9, i64::MAX, i64::MIN];

/// Seconds. None runs out during a test, and they lie so far apart that the
/// order in which they would is certain.
const LONG_TTLS: [i64; 4] = [20_000, 100_000, 1_000_000, 9_000_000_000];

pub enum Step {
    Request(Request),
    Watch {
        stream: usize,
        create: WatchCreateRequest,
    },
    /// Cancels one of the stream's watchers, chosen by `choice`, or one that
    /// does not exist.
    CancelWatch {
        stream: usize,
        choice: usize,
        is_synced_before: bool,
    },
    /// Waits until all events are out, and compares them.
    SyncWatches,
    Restart {
        is_killed: bool,
    },
}

/// What differs from seed to seed.
struct Climate {
    /// Many keys, of which most requests still use few.
    is_wide: bool,
    /// How many of [`COMPACTION_CHANCES`] end in a compaction. Few leave long
    /// histories to read back and to catch up from.
    compactions: u32,
}

const COMPACTION_CHANCES: u32 = 70;

impl Climate {
    fn random(random: &mut StdRng) -> Climate {
        const COMPACTIONS: [u32; 4] = [COMPACTION_CHANCES, COMPACTION_CHANCES, 15, 2];
        Climate {
            is_wide: random.random_bool(0.25),
            compactions: *COMPACTIONS.choose(random).expect("not empty"),
        }
    }
}

/// What is known of the store from the answers.
pub struct Model {
    pub revision: i64,
    /// -1 before the first compaction.
    pub compacted: i64,
    leases: BTreeSet<i64>,
    compactions: HashSet<i64>,
    /// Whether the removal of compacted entries has certainly ended.
    is_compaction_finished: bool,
}

impl Model {
    fn is_hash_stable(&self, revision: i64) -> bool {
        self.is_compaction_finished && !self.compactions.contains(&revision)
    }
}

/// RangeStreams that etcd pages by the last key of a chunk that it has sorted
/// by something else (RST-4): it skips and repeats keys.
fn is_unsteady_stream(request: &RangeRequest) -> bool {
    !request.count_only && request.sort_target() != SortTarget::Key
}

pub struct Generator {
    random: StdRng,
    climate: Climate,
    keys: Keys,
    model: Model,
    /// Steps that belong together and come next.
    due: VecDeque<Step>,
}

impl Generator {
    pub fn new(mut random: StdRng) -> Generator {
        let climate = Climate::random(&mut random);
        let keys = Keys::new(climate.is_wide);
        let model = Model {
            revision: 1,
            compacted: -1,
            leases: BTreeSet::new(),
            compactions: HashSet::new(),
            is_compaction_finished: true,
        };
        Generator {
            random,
            climate,
            keys,
            model,
            due: VecDeque::new(),
        }
    }

    /// What is special about this seed, for people.
    pub fn climate(&self) -> String {
        let (keys, compactions) = (self.keys.all().len(), self.climate.compactions);
        format!("{keys} keys, {compactions} of {COMPACTION_CHANCES} compactions")
    }

    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Learns from what the reference has answered.
    pub fn observe(&mut self, request: &Request, outcome: &Outcome) {
        if let Request::Compact(request) = request {
            // A physical one returns when the work that was under way is done,
            // refused or not, unless it lies in the future.
            self.model.is_compaction_finished =
                request.physical && request.revision <= self.model.revision;
        }
        let Outcome::Reply(_) = outcome else {
            return;
        };
        if let Some(revision) = outcome.revision() {
            self.model.revision = self.model.revision.max(revision);
        }
        match request {
            Request::Compact(request) => {
                self.model.compacted = request.revision;
                self.model.compactions.insert(request.revision);
            }
            Request::LeaseGrant(request) => {
                self.model.leases.insert(request.id);
            }
            Request::LeaseRevoke(request) => {
                self.model.leases.remove(&request.id);
            }
            _ => {}
        }
    }

    pub fn next_step(&mut self) -> Step {
        loop {
            if let Some(step) = self.due.pop_front() {
                return step;
            }
            match self.random.random_range(0..10_000) {
                0..9_500 => {
                    let request = self.plain_request();
                    return Step::Request(request);
                }
                9_500..9_680 => return self.watch(),
                9_680..9_780 => return self.cancel_watch(),
                9_780..9_800 => return Step::SyncWatches,
                9_800..9_870 => {
                    if self.random.random_range(0..COMPACTION_CHANCES) < self.climate.compactions {
                        self.compaction();
                    }
                }
                9_870..9_970 => self.hash(),
                9_970..9_987 => self.short_lease(),
                9_987..9_993 => self.alarm(),
                9_993..9_997 => {
                    let steps = self.giant();
                    self.due.extend(steps);
                }
                9_997 => {
                    let steps = self.giant_events();
                    self.due.extend(steps);
                }
                _ => {
                    return Step::Restart {
                        is_killed: self.random.random_bool(0.5),
                    };
                }
            }
        }
    }

    /// A request that needs nothing around it.
    fn plain_request(&mut self) -> Request {
        match self.random.random_range(0..1_000) {
            0..330 => Request::Range(self.range()),
            330..400 => Request::RangeStream(self.range_stream()),
            400..640 => Request::Put(self.put()),
            640..710 => Request::DeleteRange(self.delete_range()),
            710..900 => Request::Txn(self.txn()),
            900..922 => {
                let id = self.lease();
                let ttl = if self.random.random_bool(0.1) {
                    9_000_000_001
                } else {
                    *LONG_TTLS.choose(&mut self.random).expect("not empty")
                };
                Request::LeaseGrant(LeaseGrantRequest { id, ttl })
            }
            922..932 => Request::LeaseRevoke(LeaseRevokeRequest {
                id: self.lease_or_zero(),
            }),
            932..942 => Request::LeaseKeepAlive(LeaseKeepAliveRequest {
                id: self.lease_or_zero(),
            }),
            942..958 => {
                let keys = self.random.random_bool(0.8);
                let id = self.lease_or_zero();
                Request::LeaseTimeToLive(LeaseTimeToLiveRequest { id, keys })
            }
            958..966 => Request::LeaseLeases(LeaseLeasesRequest {}),
            _ => self
                .malformed()
                .unwrap_or_else(|| Request::Range(self.range())),
        }
    }

    fn range(&mut self) -> RangeRequest {
        let key = self.keys.key(&mut self.random);
        let range_end = self.keys.range_end(&mut self.random, &key);
        let random = &mut self.random;
        let mut range = RangeRequest {
            revision: keys::revision(random, &self.model),
            serializable: random.random_bool(0.3),
            keys_only: random.random_bool(0.15),
            count_only: random.random_bool(0.1),
            key,
            range_end,
            ..RangeRequest::default()
        };
        if random.random_bool(0.5) {
            range.limit = match random.random_range(0..20) {
                0 => -1,
                1 => i64::MAX,
                2 => i64::MIN,
                3 => i64::MAX - 1,
                _ => random.random_range(1..14),
            };
        }
        if random.random_bool(0.4) {
            range.sort_target = random.random_range(0..5);
            range.sort_order = random.random_range(0..3);
        }
        if random.random_bool(0.01) {
            range.sort_target = *[5, -1, i32::MAX].choose(random).expect("not empty");
        }
        if random.random_bool(0.01) {
            range.sort_order = *[3, -1, i32::MIN].choose(random).expect("not empty");
        }
        for filter in [
            &mut range.min_mod_revision,
            &mut range.max_mod_revision,
            &mut range.min_create_revision,
            &mut range.max_create_revision,
        ] {
            if random.random_bool(0.07) {
                *filter = keys::near_revision(random, &self.model);
            }
        }
        range
    }

    fn range_stream(&mut self) -> RangeRequest {
        let mut range = self.range();
        if self.random.random_bool(0.8) {
            let plain = RangeRequest {
                key: range.key,
                range_end: range.range_end,
                ..<_>::default()
            };
            range = RangeRequest {
                limit: range.limit,
                revision: range.revision,
                keys_only: range.keys_only,
                count_only: range.count_only,
                serializable: range.serializable,
                ..plain
            };
        }
        if is_unsteady_stream(&range) {
            range.sort_target = SortTarget::Key.into();
        }
        range
    }

    fn put(&mut self) -> PutRequest {
        let mut put = PutRequest {
            key: self.keys.key(&mut self.random),
            value: self.keys.value(&mut self.random),
            prev_kv: self.random.random_bool(0.3),
            ..PutRequest::default()
        };
        if self.random.random_bool(0.3) {
            put.lease = self.lease();
        }
        if self.random.random_bool(0.06) {
            put.ignore_value = true;
            if self.random.random_bool(0.9) {
                put.value = Bytes::new();
            }
        }
        if self.random.random_bool(0.06) {
            put.ignore_lease = true;
            if self.random.random_bool(0.9) {
                put.lease = 0;
            }
        }
        put
    }

    fn delete_range(&mut self) -> DeleteRangeRequest {
        let key = self.keys.key(&mut self.random);
        let mut range_end = self.keys.range_end(&mut self.random, &key);
        // Seldom everything at once, or the store would be empty most of the time.
        if &range_end[..] == b"\0" && self.random.random_bool(0.8) {
            range_end = Bytes::new();
        } else if self.climate.is_wide && !range_end.is_empty() && self.random.random_bool(0.9) {
            range_end = self.keys.near_end(&mut self.random, &key);
        }
        DeleteRangeRequest {
            key,
            range_end,
            prev_kv: self.random.random_bool(0.4),
        }
    }

    /// Mostly a lease that exists.
    fn lease(&mut self) -> i64 {
        let known: Vec<i64> = self.model.leases.iter().copied().collect();
        if !known.is_empty() && self.random.random_bool(0.75) {
            return *known.choose(&mut self.random).expect("not empty");
        }
        *LEASE_IDS.choose(&mut self.random).expect("not empty")
    }

    fn lease_or_zero(&mut self) -> i64 {
        if self.random.random_bool(0.03) {
            0
        } else {
            self.lease()
        }
    }

    fn watch(&mut self) -> Step {
        let is_far = self.random.random_bool(0.05);
        let stream = if is_far {
            FAR_STREAM
        } else {
            self.random.random_range(0..FAR_STREAM)
        };
        let key = self.keys.key(&mut self.random);
        let range_end = self.keys.range_end(&mut self.random, &key);
        let random = &mut self.random;
        let model = &self.model;
        let start_revision = if is_far {
            *[model.revision + 1_000_000, i64::MAX]
                .choose(random)
                .expect("not empty")
        } else {
            let oldest = model.compacted.max(1);
            match random.random_range(0..100) {
                0..35 => 0,
                35..65 => random.random_range(oldest..=model.revision),
                65..75 => oldest,
                75..82 => random.random_range(1..=oldest),
                82..88 => model.revision + 1,
                88..94 => model.revision + random.random_range(1..8),
                94..97 => -1,
                _ => 1,
            }
        };
        let filters: Vec<i32> = match random.random_range(0..20) {
            0 | 1 => vec![0],
            2 | 3 => vec![1],
            4 => vec![0, 1],
            5 => vec![2, -1],
            _ => Vec::new(),
        };
        let watch_id = match random.random_range(0..10) {
            0..6 => 0,
            6 => *[-2, i64::MIN, i64::MAX, 1_000]
                .choose(random)
                .expect("not empty"),
            _ => random.random_range(1..12),
        };
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision,
            progress_notify: random.random_bool(0.2),
            filters,
            prev_kv: random.random_bool(0.5),
            watch_id,
            fragment: random.random_bool(0.2),
        };
        Step::Watch { stream, create }
    }

    fn cancel_watch(&mut self) -> Step {
        Step::CancelWatch {
            stream: self.random.random_range(0..=FAR_STREAM),
            choice: self.random.random_range(0..1_000),
            is_synced_before: self.random.random_bool(0.5),
        }
    }

    /// A compaction. Which previous values a watcher still gets depends on
    /// when it is sent, so all events are waited for first.
    fn compaction(&mut self) {
        let random = &mut self.random;
        let model = &self.model;
        let revision = match random.random_range(0..100) {
            0..75 => random.random_range(model.compacted.max(0) + 1..=model.revision + 1),
            75..82 => model.revision,
            82..87 => model.compacted,
            87..92 => random.random_range(0..=model.compacted.max(0)),
            92..95 => model.revision + 1,
            95 => i64::MAX,
            96 => 0,
            97 => -1,
            _ => i64::MIN,
        };
        let request = CompactionRequest {
            revision,
            physical: random.random_bool(0.5),
        };
        self.due.push_back(Step::SyncWatches);
        self.due.push_back(Step::Request(Request::Compact(request)));
    }

    fn hash(&mut self) {
        if !self.model.is_compaction_finished {
            // Refused, but answered only when the removal has ended.
            let revision = self.model.compacted;
            let wait = CompactionRequest {
                revision,
                physical: true,
            };
            self.due.push_back(Step::Request(Request::Compact(wait)));
        }
        let revision = keys::revision(&mut self.random, &self.model);
        if !self.model.compactions.contains(&revision) {
            self.due
                .push_back(Step::Request(Request::HashKv(HashKvRequest { revision })));
        }
    }

    /// A lease of the shortest time there is (LEA-3), revoked before it ends.
    fn short_lease(&mut self) {
        let unused = LEASE_IDS.iter().find(|id| !self.model.leases.contains(id));
        let Some(&id) = unused else {
            return;
        };
        let ttl = *[0, 1, -5, i64::MIN]
            .choose(&mut self.random)
            .expect("not empty");
        let grant = Request::LeaseGrant(LeaseGrantRequest { id, ttl });
        let revoke = Request::LeaseRevoke(LeaseRevokeRequest { id });
        self.due
            .extend([Step::Request(grant), Step::Request(revoke)]);
    }

    /// Some requests while an alarm is up (MNT-9, MNT-10).
    fn alarm(&mut self) {
        let alarm = if self.random.random_bool(0.5) {
            AlarmType::Nospace
        } else {
            AlarmType::Corrupt
        };
        let request = |action: AlarmAction| {
            let alarm = if action == AlarmAction::Get {
                AlarmType::None
            } else {
                alarm
            };
            let (action, alarm) = (action.into(), alarm.into());
            Step::Request(Request::Alarm(AlarmRequest {
                action,
                member_id: 42,
                alarm,
            }))
        };
        self.due.push_back(request(AlarmAction::Activate));
        for _ in 0..12 {
            let step = Step::Request(self.plain_request());
            self.due.push_back(step);
        }
        self.due.push_back(request(AlarmAction::Get));
        self.due.push_back(request(AlarmAction::Deactivate));
    }
}

/// The streams 0 to this one, which is for watchers that start so far in the
/// future that the stream never answers a progress request (WAT-39).
pub const FAR_STREAM: usize = 3;
